"""What a data set is to the rest of the library: images, image-level labels and, where there are any, masks."""

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
"""The two parts of a data set that a run uses; a data set's config says which list or which seed each stands for."""


Cache = Literal["none", "memory", "node"]


class DataConfig(EntryConfig):
    """Base of the configs of ``toco.data``.

    A module there defines ``Config(DataConfig)`` and ``open_split(config, split) -> Dataset``.

    Attributes:
        cache: What is kept of decoded images: nothing; in the ``memory`` of each process that reads
            them, masks too; or once for the ``node``, in a file that all its processes map into
            their memory.
        cache_root: Folder of the files of ``node``; by default ``toco`` in the user's cache
            (``XDG_CACHE_HOME``, else ``~/.cache``). It should be on a disk of the node; in
            ``/dev/shm`` it takes the node's memory.
        allow_overlap: Take images that are for training and for validation. Scores are then of
            images that were seen; the run's provenance says so.
    """

    cache: Cache = Field(default="none", json_schema_extra={RUN_ONLY: True})
    cache_root: Path | None = Field(default=None, json_schema_extra={RUN_ONLY: True})
    # It changes whether a training starts, and no number of one that does.
    allow_overlap: bool = Field(default=False, json_schema_extra={RUN_ONLY: True})


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong or worth a look, with the file that it is in."""

    path: Path
    reason: str

    def __str__(self) -> str:
        """``path: reason``, without characters that a terminal obeys."""
        return printable(f"{self.path}: {self.reason}")


class Dataset(ABC):
    """A fixed, ordered list of images. Instances can be pickled, so that loader processes can be given one.

    Attributes:
        class_names: Names of the foreground classes; class ``class_names[j]`` has the label
            ``j + 1`` in a mask.
        names: Name of every image, unique.
        notes: What was left out, or may be meant in another way, as far as opening the data set
            shows it.
    """

    class_names: tuple[str, ...]
    names: tuple[str, ...]
    notes: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def prepare(self) -> None:  # noqa: B027 - most data sets have nothing to do
        """Do what all processes that are given this data set would otherwise do first."""

    @abstractmethod
    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The decoded RGB image; not to be written to.

        Raises:
            ValueError: The file cannot be decoded.
        """

    def image_sha256(self, index: int) -> str:
        """SHA-256 (hex) of what the image is read from: of its file, where it has one, else of its size and pixels.

        Raises:
            OSError: The file cannot be read.
        """
        image = self.image(index)
        return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the image; a data set of files reads no more than the header for it."""
        height, width, _ = self.image(index).shape
        return height, width

    @abstractmethod
    def class_labels(self, index: int) -> Float32[np.ndarray, " k"]:
        """The image-level label, multi-hot without background."""

    def num_images_by_class(self) -> tuple[int, ...] | None:
        """Images that show each class, or ``None`` where a file of every image would have to be read for it."""
        return None

    @abstractmethod
    def mask(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """The ground truth: 0 background, 1..k, 255 void; of the image's size. Not to be written to.

        Raises:
            LookupError: There is no mask of this image.
            ValueError: The file is not a mask of this image.
        """

    @abstractmethod
    def manifest_digest(self) -> str:
        """SHA-256 (hex) that changes when the names, the labels, the masks or the image files change."""
