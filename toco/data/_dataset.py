"""What a data set is to the rest of the library: images, image-level labels and, where there are any, masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8
from pydantic import Field

from toco.config import RUN_ONLY, Component

Split = Literal["train", "val"]
"""The two parts of a data set that a run uses; a data set's config says which list or which seed each stands for."""


class DataConfig(Component):
    """Base of the configs of ``toco.data``.

    A module there defines ``Config(DataConfig)`` and ``open_split(config, split) -> Dataset``.

    Attributes:
        cache: Keep every decoded image and mask in memory (of each process that reads them).
    """

    cache: bool = Field(default=False, json_schema_extra={RUN_ONLY: True})


class Dataset(ABC):
    """A fixed, ordered list of images. Instances can be pickled, so that loader processes can be given one.

    Attributes:
        class_names: Names of the foreground classes; class ``class_names[j]`` has the label ``j + 1`` in a mask.
        names: Name of every image, unique.
    """

    class_names: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    @abstractmethod
    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The decoded RGB image; not to be written to.

        Raises:
            ValueError: The file cannot be decoded.
        """

    @abstractmethod
    def class_labels(self, index: int) -> Float32[np.ndarray, " k"]:
        """The image-level label, multi-hot without background."""

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
