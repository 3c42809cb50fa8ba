"""Image files and folders as input, and the check that all images can be decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from toco.data import Dataset
from toco.data.files.images import read_upright
from toco.files import FolderContents, files_below, printable, sha256
from toco.predict.output_folder import OutputFolder
from toco.types import Shard

_SUFFIXES = (".jpg", ".jpeg", ".png")
"""Suffixes of images in folders. A file that is named itself may have any suffix."""
_MAX_FAULTS = 5
"""Number of faults that a message lists: a list of thousands would hide the first."""


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Image files with unique names.

    Attributes:
        names: Unique name of each image: its path below its root, without suffix.
        file_names: Names with suffix.
        paths: Paths of the files.
        left_out: Phrases on skipped items of the folders, such as files of other formats and broken
            links.
        max_pixels: Most pixels of an image; larger images are refused before they are decoded.
    """

    names: tuple[str, ...]
    file_names: tuple[str, ...]
    paths: tuple[Path, ...]
    left_out: tuple[str, ...]
    max_pixels: int

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Return the decoded RGB image, rotated upright (see :mod:`toco.data.files.images`).

        Raises:
            ValueError: The file is no JPEG or PNG, damaged, too large, or has no 8-bit RGB form.
        """
        return read_upright(self.paths[index], self.max_pixels)

    def image_sha256(self, index: int) -> str:
        """Return the SHA-256 (hex) of the file."""
        return sha256(self.paths[index])


Images = Dataset | ImageFiles
"""Images with names: a data set, or any files."""


def find_images(inputs: Sequence[Path], max_pixels: int) -> ImageFiles:
    """Find the image files of inputs: files, and folders with their subfolders.

    In folders, images are ``.jpg``, ``.jpeg`` and ``.png`` files. Links are followed; hidden files
    and folders are skipped.

    Raises:
        ValueError: An input does not exist, a folder has no image, or two images would have the
            same output file.
    """
    images: dict[str, tuple[str, Path]] = {}
    left_out: list[str] = []
    for path in inputs:
        for file_name, file in _below(path, left_out):
            name = Path(file_name).with_suffix("").as_posix()
            _, other = images.setdefault(name, (file_name, file))
            if other.resolve() != file.resolve():
                raise ValueError(
                    f"{printable(other)} and {printable(file)} would both be {name!r} in the "
                    "output; rename one, or use two output folders."
                )
    file_names, paths = zip(*images.values(), strict=True)
    return ImageFiles(tuple(images), file_names, paths, tuple(left_out), max_pixels)


def find_faults(
    read: Callable[[int], object],
    indices: Sequence[int],
    *,
    task: str = "check",
    progress: bool = False,
) -> dict[int, str]:
    """Read images once, to report damaged files before the work starts.

    Args:
        read: Function that reads the input of one image.
        indices: Images to read.
        task: Text of the progress bar.
        progress: Whether to show a progress bar.

    Returns:
        Reason for each image that cannot be read.
    """

    def fault(index: int) -> str | None:
        try:
            read(index)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as threads:
        reasons = tqdm(
            threads.map(fault, indices),
            total=len(indices),
            desc=task,
            unit="image",
            disable=not progress,
        )
        return {
            index: text for index, text in zip(indices, reasons, strict=True) if text is not None
        }


def check_readable(
    read: Callable[[int], object],
    folders: Iterable[OutputFolder],
    shard: Shard = Shard(),
    *,
    progress: bool = False,
) -> None:
    """Check that every image without an output can be read.

    Args:
        read: Function that reads the input of one image.
        folders: Output folders of the same images. An image with an output in each is not read.
        shard: Part of the images that this process handles.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: Images cannot be read; the message names them with the reasons.
    """
    indices = sorted({index for folder in folders for index in folder.missing(shard)})
    if faults := list(find_faults(read, indices, progress=progress).values()):
        more = f" And {len(faults) - _MAX_FAULTS} more." if len(faults) > _MAX_FAULTS else ""
        raise ValueError(
            f"{len(faults)} of {len(indices)} images cannot be used. "
            f"{' '.join(faults[:_MAX_FAULTS])}{more}"
        )


def large_enough(images: Images, least_side_px: int) -> Callable[[int], UInt8[np.ndarray, "h w 3"]]:
    """Return a function that decodes an image of sufficient size.

    It raises ``ValueError`` if a side is shorter than ``least_side_px``, if the image cannot be
    decoded, or if it does not fit into the memory.
    """

    def read(index: int) -> UInt8[np.ndarray, "h w 3"]:
        try:
            image = images.image(index)
        except MemoryError as error:
            raise ValueError(f"{images.names[index]!r} does not fit into the memory.") from error
        height, width, _ = image.shape
        if min(height, width) < least_side_px:
            raise ValueError(
                f"{images.names[index]!r}: expected sides of at least {least_side_px} px, a patch "
                f"at the smallest of inference.scales, but it has {height} x {width} px."
            )
        return image

    return read


def _below(path: Path, left_out: list[str]) -> list[tuple[str, Path]]:
    """List names and paths of the images at ``path``; add skipped items to ``left_out``."""
    if path.is_file():
        return [(path.name, path)]
    if not path.is_dir():
        raise ValueError(f"{printable(path)}: there is no such file or folder.")
    contents = files_below(path)
    others = _others(path, contents)
    images = [file for file in contents.files if file.suffix.lower() in _SUFFIXES]
    if not images:
        besides = f"; {'; '.join(others)}" if others else ""
        raise ValueError(
            f"{printable(path)}: expected images ({', '.join(_SUFFIXES)}) in it or in its folders; "
            f"there is none{besides}."
        )
    left_out += others
    return [(file.relative_to(path).as_posix(), file) for file in images]


def _others(folder: Path, contents: FolderContents) -> list[str]:
    """Describe skipped items: files of other formats by suffix, and what could not be read."""
    suffixes = Counter(file.suffix.lower() or "without a suffix" for file in contents.files)
    others = {
        suffix: count for suffix, count in sorted(suffixes.items()) if suffix not in _SUFFIXES
    }
    counts = ", ".join(f"{count} {printable(suffix)}" for suffix, count in others.items())
    number = sum(others.values())
    formats = [
        f"{printable(folder)}: {number} {'file' if number == 1 else 'files'} of other formats "
        f"({counts})"
    ]
    return (formats if others else []) + list(contents.left_out)
