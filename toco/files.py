"""Files that appear whole or not at all, are on disk when a writer says so, and are refused when a byte changed.

Every writer and reader of this project's own records uses this module, and so does every reader of text that people
or other programs write.

::

    whole_file, whole_folder     write beside the target, sync, give the target its name
    write_text, write_record     a file from text; a JSON object that carries the SHA-256 of its own bytes
    read_text, read_lines        text in UTF-8 or UTF-16, with or without a byte order mark
    read_json, read_record       JSON; a record, whose SHA-256 is compared
    files_below                  files of a folder and of the folders in it, and what was left out
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEAL = "record_sha256"
"""Last field of a record: SHA-256, in hex, of all bytes of the file before the comma that precedes it."""

_SEALED = re.compile(rb',[ \n]*"' + SEAL.encode() + rb'":[ \n]*"([0-9a-f]{64})"[ \n]*\}[ \n]*\Z')
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class UnreadableError(ValueError):
    """A file cannot be read as what it should be. The message names the file, the fault and what to do."""


@contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield another name to write; the file becomes ``path`` when the block ends without an exception.

    A crash at any moment leaves the old ``path``, or none, or the new one. The folder of ``path`` is made.

    Args:
        path: The file to write; an existing one is replaced.
        durable: Wait until the file and its name are on disk. A file that is made again after a crash needs no wait.
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

    All files, and the name, are on disk then. An existing ``path`` is replaced. A crash between the two renames of a
    replacement leaves no ``path``: use it for what can be made again or was absent.
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


def write_record(path: Path, content: Mapping[str, Any], *, indent: int | None = None, durable: bool = True) -> None:
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
        raise ValueError(f"Expected at least one field, none of them named {SEAL!r}, got {sorted(content)}.")
    separators = (",", ":") if indent is None else None
    body = json.dumps(content, indent=indent, separators=separators).removesuffix("}").rstrip()
    seal = hashlib.sha256(body.encode()).hexdigest()
    if indent is None:
        return f'{body},"{SEAL}":"{seal}"}}\n'
    return f'{body},\n{" " * indent}"{SEAL}": "{seal}"\n}}\n'


def is_sealed(content: bytes) -> bool:
    """Whether the bytes of a record are those that were written. Takes a fraction of the time that parsing takes."""
    seal = _SEALED.search(content, max(len(content) - 200, 0))
    return seal is not None and hashlib.sha256(content[: seal.start()]).hexdigest().encode() == seal[1]


def read_record(path: Path, *, advice: str = "Restore it from a copy, or delete it.") -> dict[str, Any]:
    """Read what :func:`write_record` wrote, without the seal.

    Args:
        path: The file.
        advice: Last sentence of the message: what to do about a damaged file.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableError: A byte of the file changed, or its end is missing.
    """
    content = path.read_bytes()
    if not is_sealed(content):
        raise UnreadableError(f"{printable(path)} is damaged: its bytes are not those that were written. {advice}")
    record: dict[str, Any] = json.loads(content)
    del record[SEAL]
    return record


def read_text(path: Path) -> str:
    """Read text in UTF-8, or in UTF-16 with its byte order mark. Byte order marks are dropped.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableError: The file is in another encoding.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"{printable(path)} is not text in UTF-8: {error.reason} at byte {error.start}. Save it as UTF-8."
        ) from error


def read_lines(path: Path) -> list[str]:
    """Lines of a text file without their ends (LF, CR LF or CR); see :func:`read_text`.

    No other character ends a line: ``str.splitlines`` also splits at form feeds and Unicode's separators.
    """
    lines = re.split(r"\r\n|\n|\r", read_text(path))
    return lines[:-1] if not lines[-1] else lines


def read_json(path: Path, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:  # noqa: ANN401 - any JSON value
    """Read a JSON file that a person or another program wrote.

    Args:
        path: The file, in an encoding that :func:`read_text` reads.
        object_pairs_hook: As in ``json.loads``.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableError: The file is no JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)
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
        left_out: A phrase for each thing that was not looked at: a link to nothing, a link to a folder that holds the
            link, a folder that cannot be opened, a pipe.
    """

    files: tuple[Path, ...]
    left_out: tuple[str, ...]


def files_below(folder: Path) -> FolderContents:
    """Find the files in a folder and in the folders below it. Links are followed; hidden files and folders are not."""
    files: list[Path] = []
    left_out: list[str] = []
    above = {folder: {folder.resolve()}}
    """For every folder, itself and the folders that it lies in, as they are without links."""

    def note(error: OSError) -> None:
        left_out.append(f"{printable(error.filename)} cannot be opened ({error.strerror})")

    for name, folders, names in os.walk(folder, followlinks=True, onerror=note):
        here = Path(name)
        holders = above.pop(here)
        for below in [below for below in folders if not below.startswith(".")]:
            real = (here / below).resolve()
            if real in holders:
                left_out.append(f"{printable(here / below)} is a link to a folder that holds the link")
            else:
                above[here / below] = {*holders, real}
        folders[:] = [below for below in folders if here / below in above]
        for path in (here / name for name in names if not name.startswith(".")):
            if path.is_file():
                files.append(path)
            else:
                left_out.append(f"{printable(path)} is {'a link to nothing' if path.is_symlink() else 'no file'}")
    return FolderContents(tuple(sorted(files, key=Path.as_posix)), tuple(sorted(left_out)))


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


def is_no_room(error: BaseException) -> bool:
    """Whether an error says that a disk, its inodes or a quota are used up."""
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
