"""Seal of PNG and NPZ files: the identity of their inputs, and a checksum of their bytes.

The seal is a text chunk before the end of a PNG, or the archive comment of an NPZ with its length.
It holds the identity of the file's input and settings, and the SHA-256 of all bytes before the
seal. Readers of images and arrays ignore it.
"""

from __future__ import annotations

import hashlib
import struct
import zlib

_KEYWORD = b"toco made of"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_ZIP_START = b"PK\x03\x04"
_NO_COMMENT = b"\0\0"
"""Last bytes of an archive without a comment: the length of the comment."""


def sealed(content: bytes, identity: str) -> bytes:
    """Add a seal to a PNG or NPZ file.

    Args:
        content: Content of the file, without a seal.
        identity: SHA-256 (hex) of everything that determines the content.

    Raises:
        ValueError: The content is neither a PNG nor an NPZ file.
    """
    if content.startswith(_PNG_START) and content.endswith(_PNG_END):
        body = content.removesuffix(_PNG_END)
    elif content.startswith(_ZIP_START) and content.endswith(_NO_COMMENT):
        body = content.removesuffix(_NO_COMMENT)
    else:
        raise ValueError("Expected the content of a PNG or NPZ file.")
    return body + _seal(body, identity)


def is_sealed(content: bytes, identity: str) -> bool:
    """Whether a file is complete and unchanged, and its seal has this identity."""
    body = content[: -len(_seal(content, identity))]
    return content == body + _seal(body, identity)


def _seal(body: bytes, identity: str) -> bytes:
    """Return the end of a sealed file; with the same identity, all files of a kind have its length.

    ``body`` is the file before the seal.
    """
    seal_text = f"{identity} {hashlib.sha256(body).hexdigest()}".encode()
    if body.startswith(_ZIP_START):
        return struct.pack("<H", len(seal_text)) + seal_text
    chunk = b"tEXt" + _KEYWORD + b"\0" + seal_text
    return (
        struct.pack(">I", len(seal_text) + len(_KEYWORD) + 1)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + _PNG_END
    )
