"""Atomic and durable files, records with their own SHA-256, and text from outside.

Every writer and reader of this project's records uses this module, and so does every reader of text
that people or other programs write. "Whole" means: complete, or absent.

::

    whole_file, whole_folder     write beside the target, sync, rename to the target
    write_text, write_record     a text file; a JSON object with the SHA-256 of its own bytes
    append                       bytes at the end of a file, all or none
    read_text, read_lines        text in UTF-8 or UTF-16, with or without a byte order mark
    read_json, read_record       JSON; a record, whose SHA-256 is compared
    check_seal, check_version    refuse a damaged record; refuse another version of a format
    files_below                  the files in a folder and in its subfolders, and what is skipped
    read_xml                     XML in any encoding, without a document type
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

SEAL = "record_sha256"
"""Last field of a record: SHA-256, in hex, of all bytes before the comma in front of the field."""

_SEALED = re.compile(rb',[ \n]*"' + SEAL.encode() + rb'":[ \n]*"([0-9a-f]{64})"[ \n]*\}[ \n]*\Z')
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_XML_ENCODING = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class UnreadableError(ValueError):
    """A file cannot be read in its format; the message names file, fault and remedy."""


class VersionError(UnreadableError):
    """A file is undamaged, but has a format version that this program does not read."""


@contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a partial file to write, which is renamed to ``path`` if the block succeeds.

    A crash at any moment leaves the former ``path`` or the complete new one. The folder of ``path``
    is made.

    Args:
        path: The file to write; an existing one is replaced.
        durable: Wait until the file and its name in its folder are on disk. A file that can be made
            again after a crash needs no wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        yield partial
        if durable:
            sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which is renamed to ``path`` if the block succeeds.

    All files, and the name, are on disk then. An existing ``path`` is replaced by two renames, and
    a crash between these leaves no ``path``. Use this for new folders, and for folders that can be
    made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        partial.mkdir()
        yield partial
        for item in (*partial.rglob("*"), partial):
            sync(item)
        replaced = partial_name(path)
        if path.is_dir():
            path.rename(replaced)
        partial.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(path.parent)


def partial_name(path: Path) -> Path:
    """Return a new name beside ``path`` for incomplete content: ``.HEX.partial``.

    The name does not contain the name of ``path``, which may be as long as the file system allows.
    """
    return path.with_name(f".{uuid.uuid4().hex}.partial")


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file in UTF-8, atomically; see :func:`whole_file`."""
    with whole_file(path, durable=durable) as partial:
        partial.write_bytes(text.encode("utf-8"))


def append(path: Path, content: bytes) -> None:
    """Append bytes to a file durably.

    A missing file is made. The bytes are on disk when this returns.

    Raises:
        OSError: The bytes cannot be written; the file has its former length.
    """
    # Without a buffer: closing a buffered file would write the failed bytes again, after the file
    # was cut back to its former length.
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), end)
            raise
    if not end:
        sync(path.parent)


def write_record(
    path: Path, content: Mapping[str, Any], *, indent: int | None = None, durable: bool = True
) -> None:
    """Write a JSON object with the SHA-256 of its own bytes, for :func:`read_record`."""
    write_text(path, record_text(content, indent=indent), durable=durable)


def record_text(content: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Format a JSON object with its own SHA-256 as the last field.

    Args:
        content: The fields, at least one.
        indent: Spaces of indentation; ``None`` writes one line.

    Raises:
        ValueError: ``content`` is empty, or has a field named as ``SEAL``.

    >>> record_text({"step": 4})[:27]
    '{"step":4,"record_sha256":"'
    """
    if not content or SEAL in content:
        raise ValueError(
            f"Expected at least one field, none of them named {SEAL!r}, got {sorted(content)}."
        )
    separators = (",", ":") if indent is None else None
    body = json.dumps(content, indent=indent, separators=separators).removesuffix("}").rstrip()
    seal = hashlib.sha256(body.encode()).hexdigest()
    if indent is None:
        return f'{body},"{SEAL}":"{seal}"}}\n'
    return f'{body},\n{" " * indent}"{SEAL}": "{seal}"\n}}\n'


def is_sealed(content: bytes) -> bool:
    """Whether a record's bytes match its SHA-256; much faster than parsing the record."""
    seal = _SEALED.search(content, max(len(content) - 200, 0))
    return (
        seal is not None and hashlib.sha256(content[: seal.start()]).hexdigest().encode() == seal[1]
    )


def check_seal(path: Path, content: bytes, advice: str) -> None:
    """Raise :class:`UnreadableError` if a record's bytes do not match its SHA-256."""
    if not is_sealed(content):
        raise UnreadableError(
            f"{printable(path)} is damaged: its bytes are not those that were written. {advice}"
        )


def read_record(
    path: Path, *, advice: str = "Restore it from a copy, or delete it."
) -> dict[str, Any]:
    """Read a record of :func:`write_record`, without the field of its SHA-256.

    Args:
        path: The file.
        advice: Last sentence of the message: what to do about a damaged file.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableError: A byte of the file changed, or its end is missing.
    """
    content = path.read_bytes()
    check_seal(path, content, advice)
    record: dict[str, Any] = json.loads(content)
    del record[SEAL]
    return record


def check_version(path: Path, version: object, supported: int, advice: str) -> None:
    """Refuse a file with another version of its format.

    Args:
        path: The file.
        version: The version that the file states.
        supported: The version that this program reads.
        advice: Last sentence of the message: what to do.

    Raises:
        VersionError: The versions differ.
    """
    if version != supported:
        raise VersionError(
            f"{printable(path)} has format version {version}; this program reads {supported}. "
            f"{advice}"
        )


def read_text(path: Path) -> str:
    """Read text in UTF-8, or in UTF-16 with a byte order mark, which is dropped.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableError: The file is in another encoding.
    """
    return _decoded(path, path.read_bytes(), "utf-8")


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file, see :func:`read_text`.

    Lines end with LF, CR LF or CR, which is dropped. ``str.splitlines`` would also split at form
    feeds and Unicode's separators.
    """
    lines = re.split(r"\r\n|\n|\r", read_text(path))
    return lines[:-1] if not lines[-1] else lines


def read_json(
    path: Path, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:  # noqa: ANN401 - any JSON value
    """Read a JSON file that a person or another program wrote.

    Args:
        path: The file, in an encoding that :func:`read_text` reads.
        object_pairs_hook: As in ``json.loads``. An :class:`UnreadableError` of the hook is raised
            unchanged.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableError: The file is no JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)
    except UnreadableError:
        raise
    except json.JSONDecodeError as error:
        fault = f"{error.msg} in line {error.lineno}, column {error.colno}"
    except RecursionError:
        fault = "its brackets are nested too deeply"
    except ValueError as error:
        fault = str(error)
    raise UnreadableError(f"{printable(path)} is not JSON: {fault}. Correct it, or write it again.")


@dataclass(frozen=True, slots=True)
class FolderContents:
    """The files below a folder, and what is skipped.

    Attributes:
        files: Regular files, in the order of their names.
        left_out: A phrase for each skipped item: a link to nothing, a link to a folder that holds
            the link, a folder that cannot be opened, a pipe.
        hidden: Hidden files and folders, which are skipped, too.
        closed: Folders that cannot be opened.
    """

    files: tuple[Path, ...]
    left_out: tuple[str, ...]
    hidden: tuple[Path, ...] = ()
    closed: tuple[Path, ...] = ()


def files_below(folder: Path, without: Iterable[Path] = ()) -> FolderContents:
    """Find the files in a folder and in its subfolders.

    Links are followed; hidden files and folders are skipped.

    Args:
        folder: The folder.
        without: Files and folders to skip. A folder is also skipped where a link leads to it, a
            file where a link of its name does.
    """
    files: list[Path] = []
    left_out: list[str] = []
    hidden: list[Path] = []
    closed: list[Path] = []
    skipped = {path.resolve() for path in without}
    skipped_names = {path.name for path in skipped}
    ancestors_of = {folder: {folder.resolve()}}
    """For each folder to visit, the real paths of the folder and of those that contain it."""

    def note(error: OSError) -> None:
        closed.append(Path(error.filename))
        left_out.append(f"{printable(error.filename)} cannot be opened ({error.strerror})")

    for name, folders, names in os.walk(folder, followlinks=True, onerror=note):
        current = Path(name)
        ancestors = ancestors_of.pop(current)
        hidden += (current / child for child in (*folders, *names) if child.startswith("."))
        # Subfolders: os.walk enters those that stay in ``folders``.
        for child in [child for child in folders if not child.startswith(".")]:
            real = (current / child).resolve()
            if real in skipped:
                continue
            if real in ancestors:
                left_out.append(
                    f"{printable(current / child)} is a link to a folder that holds the link"
                )
            else:
                ancestors_of[current / child] = {*ancestors, real}
        folders[:] = [child for child in folders if current / child in ancestors_of]
        # Files of this folder.
        for path in (current / name for name in names if not name.startswith(".")):
            if path.name in skipped_names and path.resolve() in skipped:
                continue
            if path.is_file():
                files.append(path)
            else:
                left_out.append(
                    f"{printable(path)} is "
                    f"{'a link to nothing' if path.is_symlink() else 'no file'}"
                )
    return FolderContents(
        tuple(sorted(files, key=Path.as_posix)),
        tuple(sorted(left_out)),
        tuple(sorted(hidden)),
        tuple(sorted(closed)),
    )


def read_xml(path: Path) -> ElementTree.Element:
    """Read the root element of an XML file, in the encoding that the file declares.

    A document type is refused: its entities can expand to gigabytes, or to another file.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableError: The file is no XML, has a document type, or is in an encoding that Python
            does not know.
    """
    content = path.read_bytes()
    declared = _XML_ENCODING.match(content)
    text = _decoded(path, content, "utf-8" if declared is None else declared[1].decode("ascii"))
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UnreadableError(
            f"{printable(path)} has a document type or entities. Save it without them."
        )
    try:
        return ElementTree.fromstring(text)  # noqa: S314 - without entities, see above
    except (ElementTree.ParseError, ValueError) as error:
        raise UnreadableError(
            f"{printable(path)} cannot be read as XML: {error}. Correct it, or write it again."
        ) from error


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _decoded(path: Path, content: bytes, encoding: str) -> str:
    """Decode a file's content; a byte order mark overrides ``encoding`` and is dropped."""
    encoding = next(
        (name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), encoding
    )
    try:
        return content.decode(encoding)
    except UnicodeError as error:
        where = (
            f": {error.reason} at byte {error.start}"
            if isinstance(error, UnicodeDecodeError)
            else ""
        )
        name = encoding.upper().removesuffix("-SIG")
        raise UnreadableError(
            f"{printable(path)} is not text in {name}{where}. Save it as UTF-8."
        ) from error
    except LookupError as error:
        raise UnreadableError(
            f"{printable(path)} declares the encoding {encoding!r}, which is unknown. Save it as "
            "UTF-8."
        ) from error


def is_no_room(error: BaseException) -> bool:
    """Whether an error means that a disk, its inodes or a quota are used up."""
    if isinstance(error, shutil.Error):
        # copytree raises a list of sources, targets and messages, without an errno.
        return any(f"[Errno {number}]" in str(error) for number in _NO_ROOM)
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def printable(text: object, keep: str = "") -> str:
    r"""Escape the unprintable characters of text from outside, such as a file's name.

    A terminal obeys control characters, and a name that is no UTF-8 cannot be printed at all.

    Args:
        text: A string, or a value for ``str``.
        keep: Unprintable characters that stay, such as line ends of a message.

    >>> printable("\x1b[31mred.png")
    '\\x1b[31mred.png'
    """
    string = str(text)
    if string.isprintable():
        return string
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode("ascii")
        for character in string
    )
