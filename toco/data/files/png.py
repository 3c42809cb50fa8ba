"""Write PNG files whose bytes do not depend on the machine."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2  # colour types
_STORED_MAX = 65_535  # longest stored block of deflate; its length is a 16-bit number


def png_bytes(pixels: UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encode a grey or RGB image as PNG without compression.

    Compressed bytes depend on the versions of zlib, zlib-ng and PIL; stored blocks do not. Source:
    PNG specification, third edition; RFC 1950 and RFC 1951, section 3.2.4.
    """
    height, width = pixels.shape[:2]
    # Each row begins with the number of its filter; 0 means none.
    rows = np.concatenate(
        [np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1
    ).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, _RGB if pixels.ndim == 3 else _GREY, 0, 0, 0)
    stream = b"\x78\x01" + b"".join(_stored_blocks(rows)) + struct.pack(">I", zlib.adler32(rows))
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", stream) + _chunk(b"IEND", b"")


def _stored_blocks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), _STORED_MAX):
        part = data[start : start + _STORED_MAX]
        is_last = start + _STORED_MAX >= len(data)
        yield struct.pack("<BHH", is_last, len(part), len(part) ^ 0xFFFF) + part


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )
