"""Data set of image, label and mask files; the base of all readers of folders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from jaxtyping import Float32, UInt8

from toco.data._dataset import DataConfig, Dataset, Finding
from toco.data.files.images import (
    FORMATS,
    MAX_PIXELS,
    Header,
    Levels,
    open_checked,
    read_header,
    read_image,
    read_mask,
)
from toco.data.files.labels import LabelsFrom, Table, label_source, multi_hot
from toco.data.files.layout import Layout, advise_on_missing, count, examples
from toco.data.files.node_cache import NodeCache, node_cache, user_cache
from toco.data.files.tree import Tree, read_tree
from toco.files import sha256
from toco.types import IGNORE_INDEX

_LAST_UPRIGHT = 4
"""Larger EXIF orientations swap height and width."""


class FileDataset(Dataset):
    """Data set of image files with their labels and masks.

    Args:
        layout: Paths of images, masks and labels.
        names: Names of the images, in order.
        class_names: Foreground classes in the order of their ids.
        labels: Source of image-level labels.
        config: Configuration of the cache of decoded images.
        allow_empty_labels: Whether an image may have no class.
        max_pixels: Most pixels of an image; larger images are refused before they are decoded.
        formats: Image formats that are decoded.
        levels: Grey levels that become 0 and 255 in images of more than 8 bits; see
            :func:`read_image`.
        notes: Remarks from reading the classes and the list.
        non_images: Files and folders within the folder of images that are no images.
        check_labels: Look up the labels of all images in a label file now, instead of on demand.
        name_list: List from which ``names`` were read, for messages; ``None`` without a list.

    Attributes:
        labels_from: The argument ``labels``.

    Raises:
        ValueError: Images are missing, several images have the same name, or a label file is
            invalid or lacks an image.
    """

    def __init__(
        self,
        layout: Layout,
        names: tuple[str, ...],
        class_names: tuple[str, ...],
        labels: LabelsFrom,
        config: DataConfig,
        *,
        allow_empty_labels: bool = True,
        max_pixels: int = MAX_PIXELS,
        formats: tuple[str, ...] = FORMATS,
        levels: Levels | None = None,
        notes: Sequence[Finding] = (),
        non_images: Sequence[Path] = (),
        check_labels: bool = True,
        name_list: Path | None = None,
    ) -> None:
        self.layout, self.names, self.class_names = layout, names, class_names
        self.notes = (*notes, *_find_images(layout, names, name_list))
        self.labels_from, self._non_images = labels, tuple(non_images)
        self._source = label_source(layout, labels, class_names, max_pixels)
        self._allow_empty_labels, self._max_pixels = allow_empty_labels, max_pixels
        self._formats, self._levels = formats, levels
        self._cache, self._cache_root = config.cache, config.cache_root or user_cache()
        self._labels: dict[int, Float32[np.ndarray, " k"]] = {}
        self._images: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
        self._masks: dict[int, UInt8[np.ndarray, "h w"]] = {}
        self._node_cache: NodeCache | None = None
        self._prepared = config.cache != "node"
        if check_labels and isinstance(self._source, Table):
            # Report faults of a label file before the first step. For masks and XML this would mean
            # opening every file.
            for index in range(len(names)):
                self.class_labels(index)

    def __getstate__(self) -> dict[str, object]:
        """Drop the decoded images: each loader process decodes its own."""
        return {**self.__dict__, "_images": {}, "_masks": {}}

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Return the decoded RGB image."""
        if index in self._images:
            return self._images[index]
        self.prepare()
        if self._node_cache is not None and (image := self._node_cache[index]) is not None:
            return image
        image = self._decode(index)
        if self._cache == "memory":
            self._images[index] = image
        return image

    def image_sha256(self, index: int) -> str:
        """Return the SHA-256 (hex) of the image's file."""
        return sha256(self.layout.image_path(self.names[index]))

    def prepare(self) -> None:
        """Decode all images into the node's cache, if configured and not done yet."""
        if not self._prepared:
            self._prepared = True
            self._node_cache = node_cache(
                self._cache_root, self._files_digest(), len(self), self.size, self._decode
            )

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width from the image's header."""
        with open_checked(
            self.layout.image_path(self.names[index]), self._max_pixels, self._formats
        ) as image:
            return image.height, image.width

    def class_labels(self, index: int) -> Float32[np.ndarray, " k"]:
        """Return the image-level label."""
        if index not in self._labels:
            name = self.names[index]
            ids = self._source(name)
            if not ids and not self._allow_empty_labels:
                void_hint = f" Its mask may have {IGNORE_INDEX}, which is void and no class."
                raise ValueError(
                    f"{self.label_path(index)}: {name!r} has no class, so it would be trained as "
                    "pure background; remove it from the list or set "
                    f"data.allow_empty_labels=true.{void_hint * (self.labels_from == 'masks')}"
                )
            self._labels[index] = multi_hot(ids, len(self.class_names))
        return self._labels[index].copy()

    def mask(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """Return the ground truth.

        A data set without masks returns void everywhere, so that no pixel is scored.
        """
        if index in self._masks:
            return self._masks[index]
        if self.layout.masks is None:
            return np.full(self.size(index), IGNORE_INDEX, dtype=np.uint8)
        path = self.layout.mask_path(self.names[index])
        if not path.is_file():
            raise LookupError(f"{path}: there is no mask of {self.names[index]!r}.")
        mask = read_mask(path, len(self.class_names), self._max_pixels)
        size = self.size(index)
        if mask.shape != size:
            rotation_hint = ""
            if mask.shape == size[::-1] and self.header(index).orientation > _LAST_UPRIGHT:
                rotation_hint = (
                    " The image has an EXIF orientation, which is ignored: store the image "
                    "rotated, without EXIF."
                )
            raise ValueError(
                f"{path}: expected a mask of the image's size {size}, but it has "
                f"{mask.shape}.{rotation_hint}"
            )
        if self._cache == "memory":
            self._masks[index] = mask
        return mask

    def header(self, index: int) -> Header:
        """Return mode and EXIF orientation of the image.

        Reading ignores the orientation, because masks refer to the stored pixels.
        """
        return read_header(
            self.layout.image_path(self.names[index]), self._max_pixels, self._formats
        )

    def label_path(self, index: int) -> Path:
        """Return the file with the image's label; the image itself if its folder is the label."""
        layout = self.layout
        paths = {
            "masks": layout.mask_path,
            "xml": layout.annotation_path,
            "folders": layout.image_path,
        }
        path_of = paths.get(str(self.labels_from))
        return layout.root / self.labels_from if path_of is None else path_of(self.names[index])

    def tree(self) -> Tree:
        """Read the whole folder of images, including those of the other split."""
        return read_tree(self.layout.images, self.layout.suffixes, self._non_images)

    def labelled_names(self) -> tuple[str, ...]:
        """Return all names in the label file, including the other split; empty without a file."""
        return self._source.names if isinstance(self._source, Table) else ()

    def num_images_by_class(self) -> tuple[int, ...] | None:
        """Count the images of each class, if labels come from one file or from folder names."""
        if not (isinstance(self._source, Table) or self.labels_from == "folders"):
            return None
        labels = (self.class_labels(index) for index in range(len(self)))
        return tuple(int(count) for count in sum(labels, np.zeros(len(self.class_names))))

    def manifest_digest(self) -> str:
        """Return a digest of names, classes, labels, bytes of masks and file sizes of images.

        Images are not read: ``train_aug`` has 1.2 GB, which takes minutes on a network disk.
        """
        digest = hashlib.sha256(repr(self.class_names).encode())
        for index, name in enumerate(self.names):
            digest.update(f"{name}\0{self.layout.image_path(name).stat().st_size}\0".encode())
            if isinstance(self._source, Table):
                digest.update(self.class_labels(index).tobytes())
            elif self.labels_from == "xml":
                digest.update(self.layout.annotation_path(name).read_bytes())
            if self.layout.masks is not None and self.layout.mask_path(name).is_file():
                digest.update(self._mask_digest(index))
        return digest.hexdigest()

    def _mask_digest(self, index: int) -> bytes:
        """Return the digest of a mask's file, which has to exist."""
        return hashlib.sha256(self.layout.mask_path(self.names[index]).read_bytes()).digest()

    def _decode(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        path = self.layout.image_path(self.names[index])
        return read_image(path, self._max_pixels, self._formats, self._levels)

    def _files_digest(self) -> str:
        """Return a digest of everything that decoded images depend on.

        It uses sizes and modification times of files, not their bytes.
        """
        settings = (
            str(self.layout.images.resolve()),
            PIL.__version__,
            self._max_pixels,
            self._levels,
        )
        digest = hashlib.sha256(repr(settings).encode())
        for name in self.names:
            path = self.layout.image_path(name)
            stat = path.stat()
            digest.update(f"{name}{path.suffix}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        return digest.hexdigest()


def _find_images(
    layout: Layout, names: Sequence[str], name_list: Path | None
) -> tuple[Finding, ...]:
    """Check that each name belongs to one image; note names in another Unicode form.

    Args:
        layout: Paths of the images.
        names: Names of the images.
        name_list: List from which the names were read; ``None`` without a list.

    Raises:
        ValueError: Images are missing, or several images have the same name.
    """
    missing, matched = [], []
    for name in names:
        paths = layout.image_paths(name)
        if not paths:
            missing.append(name)
        elif len(paths) > 1:
            files = ", ".join(sorted(ascii(path.name)[1:-1] for path in paths))
            raise ValueError(
                f"{layout.images}: {name!r} is the name of several images ({files}); keep one of "
                "them."
            )
        elif paths[0].with_suffix("") != layout.images / name:
            matched.append(name)
    if missing:
        source = "" if name_list is None else f"{name_list} names images that do not exist. "
        raise ValueError(
            f"{source}{layout.images}: {len(missing)} of {len(names)} images are missing: "
            f"{examples(missing)}.{advise_on_missing(layout, missing[0])}"
        )
    if not matched:
        return ()
    note = (
        f"{count(len(matched), 'name')} in another Unicode form than the file, and matched: "
        f"{examples(matched)}."
    )
    return (Finding(layout.images, note),)
