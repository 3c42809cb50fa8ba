"""Room on disks: how much there is, how much is needed, and the sentence about it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toco.files import is_no_room, printable

LEAST_BYTES = 1_000_000
"""A folder with less free than that is taken for full, where nobody knows what is needed."""


class NoRoomError(OSError):
    """A disk, its inodes, a quota or the files that a process may open are used up.

    Args:
        message: A sentence that names the folder and says what to do.
        number: The error number of the system.
    """

    def __init__(self, message: str, number: int = errno.ENOSPC) -> None:
        super().__init__(number, message)

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[type[NoRoomError], tuple[str, int | None]]:
        return type(self), (str(self), self.errno)


def size(number: int | float) -> str:
    """Bytes for people.

    >>> [size(n) for n in (900, 18_475_990, 3_200_000_000)]
    ['900 B', '18 MB', '3.2 GB']
    """
    for limit, unit, name in ((10**3, 1, "B"), (10**6, 10**3, "kB"), (10**9, 10**6, "MB")):
        if number < limit:
            return f"{number / unit:.0f} {name}"
    return f"{number / 1e9:.1f} GB"


def shortage(folder: Path, needed_bytes: int) -> str | None:
    """Say what a folder's disk lacks; ``None`` where there is room.

    Args:
        folder: The folder, or one that will be made.
        needed_bytes: Bytes that will be written there; 0 where that is not known.

    Raises:
        OSError: The disk cannot be asked.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    disk = os.statvfs(existing)
    free, needed = disk.f_bavail * disk.f_frsize, needed_bytes or LEAST_BYTES
    # File systems without a fixed number of inodes say 0 of 0.
    if disk.f_files and not disk.f_favail:
        return f"{printable(folder)} has no room: its disk has no free inodes. Delete files there."
    if free < needed:
        return (
            f"{printable(folder)} has no room: {size(free)} are free, and about {size(needed)} are needed. "
            "Make room there."
        )
    return None


def sentence_of(folder: Path, needed_bytes: int, error: OSError) -> str:
    """Say why writing below ``folder`` failed for want of room. A quota is no property of the disk."""
    return shortage(folder, needed_bytes) or (
        f"{printable(folder)} has no room: {error.strerror or error}. About {size(needed_bytes or LEAST_BYTES)} are "
        "needed. Make room there, or raise its quota."
    )


@contextmanager
def telling_shortage(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Say what the disk of ``folder`` lacks where an error of the block says only that a disk is full.

    Errors of ``write`` name no file, and which of a driver's files it was helps nobody.

    Args:
        folder: The folder that the block writes to.
        needed_bytes: As in :func:`shortage`.

    Raises:
        NoRoomError: The folder has no room.
        OSError: Another disk is full, or another error.
    """
    try:
        yield
    except NoRoomError:
        raise
    except OSError as error:
        if is_no_room(error) and (problem := shortage(folder, needed_bytes)) is not None:
            raise NoRoomError(problem) from error
        raise
