"""Images, labels and masks that lie in files: what all readers of folders have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from jaxtyping import Float32, UInt8

from toco.data._dataset import DataConfig, Dataset, Fault
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
"""EXIF orientations above it swap height and width."""


class FileDataset(Dataset):
    """Images in files, with the labels and masks that belong to them.

    Args:
        layout: Where the files are.
        names: Which images, and in which order.
        class_names: Foreground classes in the order of their ids.
        labels: Where image-level labels come from.
        config: Says what is kept of decoded images, and where.
        allow_empty_labels: Whether an image may show no class.
        max_pixels: Larger images are refused before they are decoded.
        formats: Formats of images that are decoded.
        levels: Levels of grey images of more than 8 bits that become 0 and 255; see
            :func:`read_image`.
        notes: What reading the classes and the list left out.
        beside: Files and folders among the images that are none.
        check_labels: Look for the labels of all images in a file of labels now, and not when they
            are asked for.
        named_in: The list that ``names`` are from, for messages; ``None`` where they are from no
            list.

    Attributes:
        labels_from: The argument ``labels``.

    Raises:
        ValueError: Images are missing, several have one name, or a file of labels is not one or
            lacks an image.
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
        notes: Sequence[Fault] = (),
        beside: Sequence[Path] = (),
        check_labels: bool = True,
        named_in: Path | None = None,
    ) -> None:
        self.layout, self.names, self.class_names = layout, names, class_names
        self.notes = (*notes, *_find_images(layout, names, named_in))
        self.labels_from, self._beside = labels, tuple(beside)
        self._source = label_source(layout, labels, class_names, max_pixels)
        self._allow_empty_labels, self._max_pixels = allow_empty_labels, max_pixels
        self._formats, self._levels = formats, levels
        self._cache, self._cache_root = config.cache, config.cache_root or user_cache()
        self._labels: dict[int, Float32[np.ndarray, " k"]] = {}
        self._images: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
        self._masks: dict[int, UInt8[np.ndarray, "h w"]] = {}
        self._of_node: NodeCache | None = None
        self._prepared = config.cache != "node"
        if check_labels and isinstance(self._source, Table):
            # A fault of a label file is said before the first step; masks and XML would all have to
            # be opened for it.
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

    def image_sha256(self, index: int) -> str:
        """SHA-256 (hex) of the image's file."""
        return sha256(self.layout.image_path(self.names[index]))

    def prepare(self) -> None:
        """Decode all images into the node's cache, if there is to be one and they are not in it."""
        if not self._prepared:
            self._prepared = True
            self._of_node = node_cache(
                self._cache_root, self._files_digest(), len(self), self.size, self._decode
            )

    def size(self, index: int) -> tuple[int, int]:
        """Height and width, from the image's header."""
        with open_checked(
            self.layout.image_path(self.names[index]), self._max_pixels, self._formats
        ) as image:
            return image.height, image.width

    def class_labels(self, index: int) -> Float32[np.ndarray, " k"]:
        """The image-level label."""
        if index not in self._labels:
            name = self.names[index]
            ids = self._source(name)
            if not ids and not self._allow_empty_labels:
                void = f" Its mask may have {IGNORE_INDEX}, which is void and no class."
                raise ValueError(
                    f"{self.label_path(index)}: {name!r} has no class, so it would be trained as pure background; "
                    f"take it off the list or set data.allow_empty_labels=true.{void * (self.labels_from == 'masks')}"
                )
            self._labels[index] = multi_hot(ids, len(self.class_names))
        return self._labels[index].copy()

    def mask(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """The ground truth; void everywhere where the data set has no masks, so that nothing is scored by pixels."""
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
            turned = ""
            if mask.shape == size[::-1] and self.header(index).orientation > _LAST_UPRIGHT:
                turned = " The image's EXIF orientation turns it, and is ignored: store the image turned, without EXIF."
            raise ValueError(
                f"{path}: expected a mask of the image's size {size}, but it has {mask.shape}.{turned}"
            )
        if self._cache == "memory":
            self._masks[index] = mask
        return mask

    def header(self, index: int) -> Header:
        """Mode and EXIF orientation of the image. The orientation is ignored: masks lie on the stored pixels."""
        return read_header(
            self.layout.image_path(self.names[index]), self._max_pixels, self._formats
        )

    def label_path(self, index: int) -> Path:
        """The file, or for names of folders the image, that the image's label is read from."""
        layout = self.layout
        paths = {
            "masks": layout.mask_path,
            "xml": layout.annotation_path,
            "folders": layout.image_path,
        }
        path_of = paths.get(str(self.labels_from))
        return layout.root / self.labels_from if path_of is None else path_of(self.names[index])

    def tree(self) -> Tree:
        """All that lies in the folder of images, those of the other split too."""
        return read_tree(self.layout.images, self.layout.suffixes, self._beside)

    def labelled_names(self) -> tuple[str, ...]:
        """All names in a file of labels, those of the other split too; none where there is no such file."""
        return self._source.names if isinstance(self._source, Table) else ()

    def num_images_by_class(self) -> tuple[int, ...] | None:
        """Images that show each class, where labels are in one file or in names of folders."""
        if not (isinstance(self._source, Table) or self.labels_from == "folders"):
            return None
        labels = (self.class_labels(index) for index in range(len(self)))
        return tuple(int(count) for count in sum(labels, np.zeros(len(self.class_names))))

    def manifest_digest(self) -> str:
        """Digest of names, classes, masks (their bytes), images (their sizes in bytes) and labels of a file.

        Images are not read: at 1.2 GB for ``train_aug`` that would cost minutes on a network disk.
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
        """Changes when a mask that is there does."""
        return hashlib.sha256(self.layout.mask_path(self.names[index]).read_bytes()).digest()

    def _decode(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        path = self.layout.image_path(self.names[index])
        return read_image(path, self._max_pixels, self._formats, self._levels)

    def _files_digest(self) -> str:
        """Digest of all that decoded images depend on, by the times of the files and not by their bytes."""
        read = (str(self.layout.images.resolve()), PIL.__version__, self._max_pixels, self._levels)
        digest = hashlib.sha256(repr(read).encode())
        for name in self.names:
            path = self.layout.image_path(name)
            known = path.stat()
            digest.update(f"{name}{path.suffix}\0{known.st_size}\0{known.st_mtime_ns}\0".encode())
        return digest.hexdigest()


def _find_images(layout: Layout, names: Sequence[str], named_in: Path | None) -> tuple[Fault, ...]:
    """See that each name is that of one image; notes of names that are matched by their Unicode form.

    Args:
        layout: Says where the images are.
        names: Of the images.
        named_in: The list that the names are from; ``None`` where they are from no list.

    Raises:
        ValueError: Images are missing, or several have one name.
    """
    missing, matched = [], []
    for name in names:
        paths = layout.image_paths(name)
        if not paths:
            missing.append(name)
        elif len(paths) > 1:
            files = ", ".join(sorted(ascii(path.name)[1:-1] for path in paths))
            raise ValueError(
                f"{layout.images}: {name!r} is the name of several images ({files}); keep one of them."
            )
        elif paths[0].with_suffix("") != layout.images / name:
            matched.append(name)
    if missing:
        source = "" if named_in is None else f"{named_in} names images that are not there. "
        raise ValueError(
            f"{source}{layout.images}: {len(missing)} of {len(names)} images are missing: {examples(missing)}."
            f"{advise_on_missing(layout, missing[0])}"
        )
    if not matched:
        return ()
    note = f"{count(len(matched), 'name')} in another Unicode form than the file, and matched: {examples(matched)}."
    return (Fault(layout.images, note),)
