"""Free disk space: compare it with the need, and word the message about a shortage."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toco.files import is_no_room, printable

LEAST_BYTES = 1_000_000
"""Free space below which a disk counts as full if the need is unknown."""


class NoRoomError(OSError):
    """A disk, its inodes, a quota or the open files of a process are used up.

    Args:
        message: Message that names the folder and gives advice.
        number: Error number of the system.
    """

    def __init__(self, message: str, number: int = errno.ENOSPC) -> None:
        super().__init__(number, message)

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[type[NoRoomError], tuple[str, int | None]]:
        return type(self), (str(self), self.errno)


def size(number: int | float) -> str:
    """Format a number of bytes with a unit.

    >>> [size(n) for n in (900, 18_475_990, 3_200_000_000)]
    ['900 B', '18 MB', '3.2 GB']
    """
    for limit, unit, name in ((10**3, 1, "B"), (10**6, 10**3, "kB"), (10**9, 10**6, "MB")):
        if number < limit:
            return f"{number / unit:.0f} {name}"
    return f"{number / 1e9:.1f} GB"


def shortage(folder: Path, needed_bytes: int) -> str | None:
    """Describe the shortage of a folder's disk; ``None`` if there is enough space.

    Args:
        folder: The folder, which may not exist yet.
        needed_bytes: Number of bytes that will be written; 0 if unknown.

    Raises:
        OSError: The system does not report the disk's free space.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    disk = os.statvfs(existing)
    free, needed = disk.f_bavail * disk.f_frsize, needed_bytes or LEAST_BYTES
    # File systems without a fixed number of inodes report a total of 0.
    if disk.f_files and not disk.f_favail:
        return f"{printable(folder)} has no room: its disk has no free inodes. Delete files there."
    if free < needed:
        return (
            f"{printable(folder)} has no room: {size(free)} are free, and about {size(needed)} are "
            "needed. Make room there."
        )
    return None


def sentence_of(folder: Path, needed_bytes: int, error: OSError) -> str:
    """Describe why writing below ``folder`` failed for lack of space: the disk, else a quota."""
    return shortage(folder, needed_bytes) or (
        f"{printable(folder)} has no room: {error.strerror or error}. About "
        f"{size(needed_bytes or LEAST_BYTES)} are needed. Make room there, or raise its quota."
    )


@contextmanager
def explain_shortage(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Replace errors of a full disk in the block by a message about the disk of ``folder``.

    The system's errors of ``write`` do not name the file or its folder.

    Args:
        folder: Folder to which the block writes.
        needed_bytes: As in :func:`shortage`.

    Raises:
        NoRoomError: The folder's disk has no space.
        OSError: Another disk is full, or any other error.
    """
    try:
        yield
    except NoRoomError:
        raise
    except OSError as error:
        if is_no_room(error) and (problem := shortage(folder, needed_bytes)) is not None:
            raise NoRoomError(problem) from error
        raise
