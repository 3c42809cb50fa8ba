"""Room on disks: how much there is, how much is needed, and the sentence about it."""

from __future__ import annotations

import os
from pathlib import Path

from sweeps.core.forecast import size

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
