"""Files that appear whole or not at all, are on disk when a writer says so, and are refused when a byte changed.

Every writer and reader of this project's own records uses this module, and so does every reader of
text that people or other programs write.

::

    whole_file, whole_folder     write beside the target, sync, give the target its name write_text,
    write_record     a file from text; a JSON object that carries the SHA-256 of its own bytes
    append                       bytes at the end of a file, all or none read_text, read_lines
    text in UTF-8 or UTF-16, with or without a byte order mark read_json, read_record       JSON; a
    record, whose SHA-256 is compared check_seal, check_version    refuse a damaged record, and one
    of another version files_below                  files of a folder and of the folders in it, and
    what was left out read_xml                     XML in any encoding, without a document type
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
"""Last field of a record: SHA-256, in hex, of all bytes of the file before the comma that precedes it."""

_SEALED = re.compile(rb',[ \n]*"' + SEAL.encode() + rb'":[ \n]*"([0-9a-f]{64})"[ \n]*\}[ \n]*\Z')
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_XML_ENCODING = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class UnreadableError(ValueError):
    """A file cannot be read as what it should be. The message names the file, the fault and what to do."""


class VersionError(UnreadableError):
    """A file is whole, and of a version of its format that this program does not read."""


@contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield another name to write; the file becomes ``path`` when the block ends without an exception.

    A crash at any moment leaves the old ``path``, or none, or the new one. The folder of ``path``
    is made.

    Args:
        path: The file to write; an existing one is replaced.
        durable: Wait until the file and its name are on disk. A file that is made again after a
            crash needs no wait.
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
    """Yield an empty folder to fill; it becomes ``path`` when the block ends without an exception.

    All files, and the name, are on disk then. An existing ``path`` is replaced. A crash between the
    two renames of a replacement leaves no ``path``: use it for what can be made again or was
    absent.
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
    """A new name beside ``path`` for what is not whole yet; it begins with a dot and ends in ``.partial``.

    It does not contain the name of ``path``, which may be as long as the file system allows.
    """
    return path.with_name(f".{uuid.uuid4().hex}.partial")


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file in UTF-8, whole or not at all; see :func:`whole_file`."""
    with whole_file(path, durable=durable) as partial:
        partial.write_bytes(text.encode("utf-8"))


def append(path: Path, content: bytes) -> None:
    """Add bytes at the end of a file, which is made if it is missing. They are on disk when this returns.

    Raises:
        OSError: They cannot be written; the file ends where it ended before.
    """
    # Without a buffer: closing one writes again what could not be written, after the file was cut
    # back.
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
    """Write a JSON object that carries the SHA-256 of its own bytes; :func:`read_record` reads it."""
    write_text(path, record_text(content, indent=indent), durable=durable)


def record_text(content: Mapping[str, Any], *, indent: int | None = None) -> str:
    """A JSON object with its own SHA-256 as the last field.

    Args:
        content: The fields, at least one.
        indent: Spaces of indentation; one line without it.

    Raises:
        ValueError: ``content`` is empty, or has a field of the seal's name.

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
    """Whether the bytes of a record are those that were written. Takes a fraction of the time that parsing takes."""
    seal = _SEALED.search(content, max(len(content) - 200, 0))
    return (
        seal is not None and hashlib.sha256(content[: seal.start()]).hexdigest().encode() == seal[1]
    )


def check_seal(path: Path, content: bytes, advice: str) -> None:
    """Refuse the bytes of a record that are not those that were written; see :func:`read_record`."""
    if not is_sealed(content):
        raise UnreadableError(
            f"{printable(path)} is damaged: its bytes are not those that were written. {advice}"
        )


def read_record(
    path: Path, *, advice: str = "Restore it from a copy, or delete it."
) -> dict[str, Any]:
    """Read what :func:`write_record` wrote, without the seal.

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


def check_version(path: Path, version: object, known: int, advice: str) -> None:
    """Refuse a file of another version of its format.

    Args:
        path: The file.
        version: Its version, as it says.
        known: The version that this program reads.
        advice: Last sentence of the message: what to do.

    Raises:
        VersionError: The two differ.
    """
    if version != known:
        raise VersionError(
            f"{printable(path)} has format version {version}; this program reads {known}. {advice}"
        )


def read_text(path: Path) -> str:
    """Read text in UTF-8, or in UTF-16 with its byte order mark. Byte order marks are dropped.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableError: The file is in another encoding.
    """
    return _decoded(path, path.read_bytes(), "utf-8")


def read_lines(path: Path) -> list[str]:
    """Lines of a text file without their ends (LF, CR LF or CR); see :func:`read_text`.

    No other character ends a line: ``str.splitlines`` also splits at form feeds and Unicode's
    separators.
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
            as it is.

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
    """What lies below a folder.

    Attributes:
        files: Regular files, in the order of their names.
        left_out: A phrase for each thing that was not looked at: a link to nothing, a link to a
            folder that holds the link, a folder that cannot be opened, a pipe.
        hidden: Hidden files and folders, which are not looked at either.
        closed: Folders that cannot be opened.
    """

    files: tuple[Path, ...]
    left_out: tuple[str, ...]
    hidden: tuple[Path, ...] = ()
    closed: tuple[Path, ...] = ()


def files_below(folder: Path, without: Iterable[Path] = ()) -> FolderContents:
    """Find the files in a folder and in the folders below it. Links are followed; hidden files and folders are not.

    Args:
        folder: The folder.
        without: Files and folders that are passed over, by whichever name they are met.
    """
    files: list[Path] = []
    left_out: list[str] = []
    hidden: list[Path] = []
    closed: list[Path] = []
    passed = {path.resolve() for path in without}
    passed_names = {path.name for path in passed}
    above = {folder: {folder.resolve()}}
    """For every folder, itself and the folders that it lies in, as they are without links."""

    def note(error: OSError) -> None:
        closed.append(Path(error.filename))
        left_out.append(f"{printable(error.filename)} cannot be opened ({error.strerror})")

    for name, folders, names in os.walk(folder, followlinks=True, onerror=note):
        here = Path(name)
        holders = above.pop(here)
        hidden += (here / below for below in (*folders, *names) if below.startswith("."))
        for below in [below for below in folders if not below.startswith(".")]:
            real = (here / below).resolve()
            if real in passed:
                continue
            if real in holders:
                left_out.append(
                    f"{printable(here / below)} is a link to a folder that holds the link"
                )
            else:
                above[here / below] = {*holders, real}
        folders[:] = [below for below in folders if here / below in above]
        for path in (here / name for name in names if not name.startswith(".")):
            if path.name in passed_names and path.resolve() in passed:
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
    """Text of a file's content; a byte order mark counts more than ``encoding`` and is dropped."""
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
    """Whether an error says that a disk, its inodes or a quota are used up."""
    if isinstance(error, shutil.Error):
        # From copying a folder: a list of sources, targets and messages, without a number.
        return any(f"[Errno {number}]" in str(error) for number in _NO_ROOM)
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def printable(text: object, keep: str = "") -> str:
    r"""Text from outside, such as a file's name, with its unprintable characters escaped.

    A terminal obeys control characters, and a name that is no UTF-8 cannot be printed at all.

    Args:
        text: A string, or what ``str`` makes one of.
        keep: Unprintable characters that stay, such as line ends of a message.

    >>> printable("\x1b[31mred.png")
    '\\x1b[31mred.png'
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode("ascii")
        for character in shown
    )
