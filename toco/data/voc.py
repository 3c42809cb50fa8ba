"""PASCAL VOC 2012, and any folder of the same shape with its own ``classes.txt``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from jaxtyping import Float32, UInt8
from pydantic import Field

from toco.config import RUN_ONLY
from toco.data._dataset import Cache, DataConfig, Dataset, Split
from toco.data._images import open_checked, read_image, read_mask
from toco.data._labels import LabelsFrom, Table, label_source, multi_hot
from toco.data._layout import Layout, read_class_names, read_names
from toco.data._node_cache import NodeCache, node_cache, user_cache

MAX_PIXELS = 50_000_000
"""Default cap on an image's pixels: a hundred times the largest image of VOC or COCO."""


class Config(DataConfig):
    """A VOC-shaped folder.

    Attributes:
        root: Folder with ``JPEGImages``, ``ImageSets/Segmentation`` and ``SegmentationClassAug`` or
            ``SegmentationClass`` (``.../VOCdevkit/VOC2012``).
        train_list: Name of the training list (``train_aug`` has 10 582 images, ``train`` 1 464).
        val_list: Name of the validation list (1 449 images).
        labels: Where image-level labels come from: ``masks``, ``xml`` (``Annotations``), or a ``.csv``, ``.json`` or
            ``.npz`` file, relative to ``root``.
        classes: File of class names, relative to ``root``; without it ``classes.txt`` in ``root``, else VOC's names.
        mask_folder: Folder of masks in ``root``; without it ``SegmentationClassAug`` if present, else
            ``SegmentationClass``.
        allow_empty_labels: Take training images without any class, which are trained as pure background.
        max_pixels: Larger images are refused before they are decoded.
    """

    name: Literal["voc"] = "voc"
    # Where the data lies changes no result: the manifest digest in a run's provenance says what it was.
    root: Path = Field(default=Path("VOCdevkit/VOC2012"), json_schema_extra={RUN_ONLY: True})
    train_list: str = "train_aug"
    val_list: str = "val"
    labels: LabelsFrom = "masks"
    classes: Path | None = None
    mask_folder: str | None = None
    allow_empty_labels: bool = False
    max_pixels: int = Field(default=MAX_PIXELS, gt=0, json_schema_extra={RUN_ONLY: True})


class VocFolder(Dataset):
    """Images of a VOC-shaped folder.

    Args:
        layout: The folder.
        names: Which images, and in which order.
        class_names: Foreground classes in the order of their ids.
        labels: Where image-level labels come from.
        allow_empty_labels: Whether an image may show no class.
        cache: What is kept of decoded images; see :class:`toco.data.DataConfig`.
        cache_root: Folder of the decoded images of a node; by default in the user's cache.
        max_pixels: Larger images are refused before they are decoded.

    Raises:
        ValueError: A file of labels is not one, or lacks an image.
    """

    def __init__(
        self,
        layout: Layout,
        names: tuple[str, ...],
        class_names: tuple[str, ...],
        labels: LabelsFrom = "masks",
        *,
        allow_empty_labels: bool = True,
        cache: Cache = "none",
        cache_root: Path | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.layout, self.names, self.class_names = layout, names, class_names
        self._labels_from = labels
        self._source = label_source(layout, labels, class_names, max_pixels)
        self._allow_empty_labels, self._max_pixels = allow_empty_labels, max_pixels
        self._cache, self._cache_root = cache, user_cache() if cache_root is None else cache_root
        self._labels: dict[int, Float32[np.ndarray, " k"]] = {}
        self._images: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
        self._masks: dict[int, UInt8[np.ndarray, "h w"]] = {}
        self._of_node: NodeCache | None = None
        self._prepared = cache != "node"
        if isinstance(self._source, Table):
            # A fault of a label file is said before the first step; masks and XML would all have to be opened for it.
            for index in range(len(names)):
                self.class_labels(index)

    def __getstate__(self) -> dict[str, object]:
        """Without the decoded images: a loader process decodes its own."""
        return {**self.__dict__, "_images": {}, "_masks": {}}

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The decoded RGB image."""
        if index in self._images:
            return self._images[index]
        self.prepare()
        if self._of_node is not None and (image := self._of_node[index]) is not None:
            return image
        image = self._decode(index)
        if self._cache == "memory":
            self._images[index] = image
        return image

    def prepare(self) -> None:
        """Decode all images into the node's cache, if there is to be one and they are not in it."""
        if not self._prepared:
            self._prepared = True
            self._of_node = node_cache(self._cache_root, self._files_digest(), len(self), self.size, self._decode)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width, from the image's header."""
        with open_checked(self.layout.image_path(self.names[index]), self._max_pixels) as image:
            return image.height, image.width

    def class_labels(self, index: int) -> Float32[np.ndarray, " k"]:
        """The image-level label."""
        if index not in self._labels:
            name = self.names[index]
            ids = self._source.class_ids(name)
            if not ids and not self._allow_empty_labels:
                raise ValueError(
                    f"{name!r} has no class, so it would be trained as pure background; "
                    "take it off the list or set data.allow_empty_labels=true."
                )
            self._labels[index] = multi_hot(ids, len(self.class_names))
        return self._labels[index].copy()

    def mask(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """The ground truth."""
        if index in self._masks:
            return self._masks[index]
        path = self.layout.mask_path(self.names[index])
        if not path.is_file():
            raise LookupError(f"{path}: there is no mask of {self.names[index]!r}.")
        mask = read_mask(path, len(self.class_names), self._max_pixels)
        size = self.size(index)
        if mask.shape != size:
            raise ValueError(f"{path}: expected a mask of the image's size {size}, but it has {mask.shape}.")
        if self._cache == "memory":
            self._masks[index] = mask
        return mask

    def manifest_digest(self) -> str:
        """Digest of names, classes, masks (their bytes), images (their sizes in bytes) and labels of a file.

        Images are not read: at 1.2 GB for ``train_aug`` that would cost minutes on a network disk.
        """
        digest = hashlib.sha256(repr(self.class_names).encode())
        for index, name in enumerate(self.names):
            digest.update(f"{name}\0{self.layout.image_path(name).stat().st_size}\0".encode())
            if isinstance(self._source, Table):
                digest.update(self.class_labels(index).tobytes())
            elif self._labels_from == "xml":
                digest.update(self.layout.annotation_path(name).read_bytes())
            if (mask := self.layout.mask_path(name)).is_file():
                digest.update(hashlib.sha256(mask.read_bytes()).digest())
        return digest.hexdigest()

    def _decode(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return read_image(self.layout.image_path(self.names[index]), self._max_pixels)

    def _files_digest(self) -> str:
        """Digest of all that decoded images depend on, by the times of the files and not by their bytes."""
        digest = hashlib.sha256(repr((str(self.layout.root.resolve()), PIL.__version__, self._max_pixels)).encode())
        for name in self.names:
            path = self.layout.image_path(name)
            known = path.stat()
            digest.update(f"{path.name}\0{known.st_size}\0{known.st_mtime_ns}\0".encode())
        return digest.hexdigest()


def open_split(config: Config, split: Split) -> VocFolder:
    """Open the training or the validation list.

    Raises:
        ValueError: The folder, the list, an image or a label is missing or wrong.
    """
    if not config.root.is_dir():
        raise ValueError(f"{config.root}: expected a VOC-shaped folder, but there is none; set data.root.")
    layout = Layout(config.root, config.mask_folder)
    names = read_names(layout, config.train_list if split == "train" else config.val_list)
    missing = [name for name in names if not layout.image_paths(name)]
    if missing:
        raise ValueError(
            f"{layout.root / 'JPEGImages'}: {len(missing)} images of the {split} list are missing: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else '.'}"
        )
    return VocFolder(
        layout,
        names,
        read_class_names(layout, None if config.classes is None else config.root / config.classes),
        config.labels,
        allow_empty_labels=config.allow_empty_labels or split == "val",
        cache=config.cache,
        cache_root=config.cache_root,
        max_pixels=config.max_pixels,
    )
