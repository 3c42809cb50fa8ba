"""Room on disks: how much there is, how much is needed, and the sentence about it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeps.core.failures import NoRoomError
from sweeps.core.forecast import size
from toco.files import is_no_room

LEAST_BYTES = 1_000_000
"""A folder with less free than that is taken for full, where nobody knows what a trial needs."""


def shortage(folder: Path, needed_bytes: int) -> str | None:
    """What a folder's disk lacks, in a sentence; ``None`` where there is room.

    Args:
        folder: The folder, or one that will be made.
        needed_bytes: Bytes that a trial writes there; 0 where that is not known.

    Raises:
        OSError: The disk cannot be asked.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    disk = os.statvfs(there)
    free, needed = disk.f_bavail * disk.f_frsize, max(needed_bytes, LEAST_BYTES)
    # File systems without a fixed number of inodes say 0 of 0.
    if disk.f_files and not disk.f_favail:
        return f"{folder} has no room: its disk has no free inodes. Delete files there."
    if free < needed:
        return f"{folder} has no room: {size(free)} are free, and a trial needs about {size(needed)}. Make room there."
    return None


def sentence_of(folder: Path, needed_bytes: int, error: OSError) -> str:
    """What to say where writing below ``folder`` failed for want of room, which a quota may be the reason of."""
    return shortage(folder, needed_bytes) or (
        f"{folder} has no room: {error.strerror or error}. A trial needs about "
        f"{size(max(needed_bytes, LEAST_BYTES))}. Make room there, or raise its quota."
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
    except OSError as error:
        if is_no_room(error) and (problem := shortage(folder, needed_bytes)) is not None:
            raise NoRoomError(problem) from error
        raise
