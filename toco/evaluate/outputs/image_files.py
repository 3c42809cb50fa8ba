"""Images to work on: those of a data set, or any files and folders; all of them are decoded once before the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from toco.data._images import read_image
from toco.types import Shard

_SUFFIXES = (".jpg", ".jpeg", ".png")


@runtime_checkable
class Images(Protocol):
    """Named images; a :class:`toco.data.Dataset` is one."""

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every image, unique: a relative path without suffix."""

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The decoded RGB image."""


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Image files.

    Attributes:
        names: Path of each below its root, without suffix.
        file_names: The same with suffix.
        paths: Where they are.
        roots: Folders that were named, and those of the files that were.
        max_pixels: Larger images are refused before they are decoded.
    """

    names: tuple[str, ...]
    file_names: tuple[str, ...]
    paths: tuple[Path, ...]
    roots: frozenset[Path]
    max_pixels: int

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The decoded RGB image, pixels as they are stored: an EXIF orientation is ignored, as in training.

        Raises:
            ValueError: The file is no JPEG or PNG, broken, too large, or has no 8-bit RGB form.
        """
        return read_image(self.paths[index], self.max_pixels)


def find_images(inputs: Sequence[Path], max_pixels: int) -> ImageFiles:
    """Files as they are named, and all ``.jpg``, ``.jpeg`` and ``.png`` files in folders and in the folders in them.

    Hidden files and folders are left out.

    Raises:
        ValueError: There is no such file, a folder holds no image, or two images would have one output.
    """
    found: dict[str, tuple[str, Path]] = {}
    for path in inputs:
        for file_name, file in _below(path):
            name = str(Path(file_name).with_suffix("").as_posix())
            _, other = found.setdefault(name, (file_name, file))
            if other.resolve() != file.resolve():
                raise ValueError(
                    f"{other} and {file} would both be {name!r} in the output; rename one, or use two output folders."
                )
    file_names, paths = zip(*found.values(), strict=True)
    roots = frozenset((path if path.is_dir() else path.parent).resolve() for path in inputs)
    return ImageFiles(tuple(found), file_names, paths, roots, max_pixels)


def check_images(
    images: Images, outputs: Mapping[Path, str], least_side_px: int, shard: Shard = Shard(), *, progress: bool = False
) -> None:
    """Decode images once, as :func:`check_readable` does, and refuse those with a side shorter than ``least_side_px``.

    Raises:
        ValueError: Some cannot be read or are too small; the message says which and why.
    """

    def read(index: int) -> None:
        height, width, _ = images.image(index).shape
        if min(height, width) < least_side_px:
            raise ValueError(
                f"{images.names[index]!r}: expected sides of at least {least_side_px} px, a patch at the smallest of "
                f"inference.scales, but it has {height} x {width} px."
            )

    check_readable(read, images.names, outputs, shard, progress=progress)


def check_readable(
    read: Callable[[int], object],
    names: Sequence[str],
    outputs: Mapping[Path, str],
    shard: Shard = Shard(),
    *,
    progress: bool = False,
) -> None:
    """Read once what is to be worked on, so that a broken file is known before the work and not in the middle of it.

    It comes before the folders of the outputs are made, so that after a refusal nothing is there.

    Args:
        read: Reads what belongs to one image.
        names: Of the images.
        outputs: Folders of outputs, with the suffix of the files in each. Images that have them all are not read.
        shard: Which share of the images is worked on.
        progress: Show a bar.

    Raises:
        ValueError: Some cannot be read; the message says which and why.
    """
    own = range(shard.rank, len(names), shard.world_size)
    unmade = [
        index
        for index in own
        if not all((folder / f"{names[index]}{suffix}").is_file() for folder, suffix in outputs.items())
    ]

    def fault(index: int) -> str | None:
        try:
            read(index)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as threads:
        found = tqdm(threads.map(fault, unmade), total=len(unmade), desc="check", unit="image", disable=not progress)
        faults = [text for text in found if text is not None]
    if faults:
        more = f" And {len(faults) - 5} more." if len(faults) > 5 else ""
        raise ValueError(f"{len(faults)} of {len(unmade)} images cannot be used. {' '.join(faults[:5])}{more}")


def _below(path: Path) -> list[tuple[str, Path]]:
    """Relative names and paths of the images that ``path`` stands for."""
    if path.is_file():
        return [(path.name, path)]
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such file or folder.")
    inside = ((file.relative_to(path), file) for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
    found = sorted(
        (name.as_posix(), file)
        for name, file in inside
        if file.is_file() and not any(part.startswith(".") for part in name.parts)
    )
    if not found:
        raise ValueError(f"{path}: expected images ({', '.join(_SUFFIXES)}) in it or in its folders; there is none.")
    return found
