"""Cache of decoded images, shared by all processes of a node.

All images lie in one file, which each process maps into its memory instead of decoding. The first
process writes the file. The system's page cache holds it once, for any number of trainings and
loader processes.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from toco.files import printable, read_record, sync, write_record

logger = logging.getLogger(__name__)

_FORMAT_VERSION = 2
_INDEX, _PIXELS = "index.json", "pixels.bin"
_SPARE_BYTES = 2**30
"""Disk space that stays free, for the checkpoints of runs on the same disk."""
_Place = tuple[int, int, int, int]
"""First byte, height and width of an image (0 if it is missing), and the CRC-32 of its pixels."""


def user_cache() -> Path:
    """Return the folder ``toco`` in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toco"


class NodeCache:
    """Decoded images of one list of files; unpickling maps the file again.

    Each process checks an image's checksum when it first reads the image. If a checksum is wrong,
    the cache returns no image and deletes its index, so that the next opening writes the cache
    again.

    Raises:
        OSError: The files cannot be read.
        ValueError: The files are not the complete cache of this manifest.
    """

    def __init__(self, folder: Path, manifest: str) -> None:
        self._folder, self._manifest = folder, manifest
        index = read_record(folder / _INDEX)
        expected = {
            "format_version": _FORMAT_VERSION,
            "manifest": manifest,
            "bytes": (folder / _PIXELS).stat().st_size,
        }
        if {key: index.get(key) for key in expected} != expected:
            raise ValueError(
                "its index belongs to other images, another format version or a file of another "
                "length"
            )
        self._places: list[_Place] = index["places"]
        self._pixels = np.memmap(folder / _PIXELS, dtype=np.uint8, mode="r")
        self._compared: set[int] = set()

    def __reduce__(self) -> tuple[Callable[[Path, str], NodeCache | None], tuple[Path, str]]:
        return _try_open, (self._folder, self._manifest)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """Return the image; ``None`` if it could not be decoded or its pixels are damaged."""
        start, height, width, crc = self._places[index]
        if not height:
            return None
        pixels = self._pixels[start : start + height * width * 3]
        if index not in self._compared:
            if zlib.crc32(pixels.data) != crc:
                self._delete_index()
                return None
            self._compared.add(index)
        return np.asarray(pixels).reshape(height, width, 3)

    def _delete_index(self) -> None:
        logger.warning(
            "%s: decoded images are damaged; such images are decoded from their files, and the "
            "next training writes the folder again.",
            printable(self._folder),
        )
        with suppress(OSError):
            (self._folder / _INDEX).unlink(missing_ok=True)


def node_cache(
    root: Path,
    manifest: str,
    count: int,
    size: Callable[[int], tuple[int, int]],
    decode: Callable[[int], UInt8[np.ndarray, "h w 3"]],
) -> NodeCache | None:
    """Open the cache of some images under ``root``; write it first if necessary.

    Args:
        root: Folder of the caches, on a disk of the node or in its memory.
        manifest: Hexadecimal digest that changes whenever a pixel of the images may change.
        count: Number of images.
        size: Function that returns height and width of an image without decoding it.
        decode: Function that decodes an image. An image for which it raises ``ValueError`` is not
            stored.

    Returns:
        The cache; ``None`` if it cannot be written or read, with a log entry. The caller then
        decodes the images.
    """
    folder = root / f"decoded-{_FORMAT_VERSION}-{manifest[:16]}"
    if folder.is_dir() and (cache := _try_open(folder, manifest)) is not None:
        return cache
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Only one process writes; the others wait and then find the folder. The system releases the
        # lock when its process ends, however that happens.
        with (root / f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.is_dir() and _try_open(folder, manifest) is None:
                logger.warning("%s is written again.", printable(folder))
                shutil.rmtree(folder)  # processes that have mapped the file keep its pixels
            if not folder.is_dir():
                _write(folder, manifest, count, size, decode)
    except OSError as error:
        logger.warning(
            "%s: decoded images cannot be stored there (%s); each use decodes them again.",
            printable(root),
            error,
        )
        return None
    return _try_open(folder, manifest)


def _try_open(folder: Path, manifest: str) -> NodeCache | None:
    try:
        return NodeCache(folder, manifest)
    except (OSError, ValueError) as error:
        logger.warning(
            "%s: expected decoded images, but they cannot be read (%s).", printable(folder), error
        )
        return None


def _write(
    folder: Path,
    manifest: str,
    count: int,
    size: Callable[[int], tuple[int, int]],
    decode: Callable[[int], UInt8[np.ndarray, "h w 3"]],
) -> None:
    # Position of each image in the file.
    sizes = []
    for index in range(count):
        try:
            sizes.append(size(index))
        except ValueError:
            sizes.append((0, 0))
    *starts, end = accumulate((height * width * 3 for height, width in sizes), initial=0)
    free = shutil.disk_usage(folder.parent).free
    if free < end + _SPARE_BYTES:
        raise OSError(
            errno.ENOSPC, f"{end} bytes and {_SPARE_BYTES} to spare are needed, {free} are free"
        )

    # Remove the folder of a killed process; the lock excludes other writers.
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()

    # Pixels, then the index, then the rename that makes the cache visible.
    try:
        with (unfinished / _PIXELS).open("wb") as pixels, ThreadPoolExecutor() as threads:

            def put(index: int) -> _Place:
                try:
                    content = decode(index).tobytes()
                except ValueError:
                    return starts[index], 0, 0, 0
                if os.pwrite(pixels.fileno(), content, starts[index]) < len(content):
                    raise OSError(errno.ENOSPC, "an image could not be written whole")
                return starts[index], *sizes[index], zlib.crc32(content)

            stored_places = threads.map(put, range(count))
            places = list(
                tqdm(
                    stored_places,
                    total=count,
                    desc="decoding once for this node",
                    unit="image",
                    disable=None,
                    dynamic_ncols=True,
                )
            )
            pixels.truncate(end)
            os.fsync(pixels.fileno())
        index_record = {
            "format_version": _FORMAT_VERSION,
            "manifest": manifest,
            "bytes": end,
            "places": places,
        }
        write_record(unfinished / _INDEX, index_record)
        unfinished.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
