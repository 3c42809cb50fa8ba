"""Interface of a data set: images, image-level labels and optional masks."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8
from pydantic import Field

from toco.config import RUN_ONLY, EntryConfig
from toco.files import printable

Split = Literal["train", "val"]
"""The two parts of a data set that a run uses; its config maps each to a list or a seed."""

Cache = Literal["none", "memory", "node"]
"""Where decoded images are kept; see :class:`DataConfig`."""


class DataConfig(EntryConfig):
    """Base of the configs of ``toco.data``.

    A module there defines ``Config(DataConfig)`` and ``open_split(config, split) -> Dataset``.

    Attributes:
        cache: Where decoded images are kept. ``none``: they are decoded each time. ``memory``: in
            the memory of each process that reads them, masks too. ``node``: in one file per node,
            which all processes map into their memory.
        cache_root: Folder for the files of ``node``; by default ``toco`` in the user's cache
            (``XDG_CACHE_HOME``, else ``~/.cache``). Choose a local disk of the node; a folder in
            ``/dev/shm`` takes memory.
        allow_overlap: Accept images that are both in the training and in the validation split.
            Scores then include images that the network was trained on; the run's provenance
            records this.
    """

    cache: Cache = Field(default="none", json_schema_extra={RUN_ONLY: True})
    cache_root: Path | None = Field(default=None, json_schema_extra={RUN_ONLY: True})
    # Run-only: it decides whether a training starts, and changes no number of the training.
    allow_overlap: bool = Field(default=False, json_schema_extra={RUN_ONLY: True})


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem or a remark, with the file that it concerns."""

    path: Path
    reason: str

    def __str__(self) -> str:
        """Format as ``path: reason``, without control characters."""
        return printable(f"{self.path}: {self.reason}")


class Dataset(ABC):
    """Fixed, ordered list of images with labels; picklable for loader processes.

    Attributes:
        class_names: Names of the foreground classes; class ``class_names[j]`` has the label
            ``j + 1`` in a mask.
        names: Unique name of every image.
        notes: Remarks from opening the data set: skipped files, and input that may be a mistake.
    """

    class_names: tuple[str, ...]
    names: tuple[str, ...]
    notes: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def prepare(self) -> None:  # noqa: B027 - most data sets have nothing to do
        """Do work once that every process would otherwise repeat, such as filling a cache."""

    @abstractmethod
    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Return the decoded RGB image; the caller must not modify it.

        Raises:
            ValueError: The file cannot be decoded.
        """

    def image_sha256(self, index: int) -> str:
        """Return the SHA-256 (hex) of the image's file, or of its size and pixels without a file.

        Raises:
            OSError: The file cannot be read.
        """
        image = self.image(index)
        return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width; data sets of files read only the header."""
        height, width, _ = self.image(index).shape
        return height, width

    @abstractmethod
    def class_labels(self, index: int) -> Float32[np.ndarray, " k"]:
        """Return the image-level label, multi-hot without background."""

    def num_images_by_class(self) -> tuple[int, ...] | None:
        """Count the images of each class.

        ``None`` where the count would need one file read per image.
        """
        return None

    @abstractmethod
    def mask(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """Return the ground truth at the image's size: 0 background, 1..k classes, 255 void.

        The caller must not modify it.

        Raises:
            LookupError: The image has no mask.
            ValueError: The file is not a mask of this image.
        """

    @abstractmethod
    def manifest_digest(self) -> str:
        """Return a SHA-256 (hex) that changes with the names, labels, masks or image files."""
