"""Image-level labels from masks, XML annotations, folder names or a label file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from jaxtyping import Float32

from toco.data.files.images import ids_in, read_mask
from toco.data.files.label_table import read_table
from toco.data.files.layout import Layout, composed
from toco.files import read_xml
from toco.types import IGNORE_INDEX

LabelsFrom = Literal["masks", "xml", "folders"] | Path
"""Source of labels: ``masks``, ``xml`` (VOC's annotations), ``folders`` or a label file.

``folders``: the image lies in a folder with the name of its class. A label file is a ``.csv``,
``.json`` or ``.npz`` file, relative to the root.
"""

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})

LabelSource = Callable[[str], tuple[int, ...]]
"""Function from an image's name to its ascending class ids (1..k); empty without a class.

It raises ``ValueError`` for an unknown image or an id out of range.
"""


def label_source(
    layout: Layout, labels: LabelsFrom, class_names: tuple[str, ...], max_pixels: int
) -> LabelSource:
    """Open a source of labels.

    A label file is read and checked at once; masks and XML are read on demand.

    Raises:
        ValueError: The label file is invalid for these classes.
    """
    if labels == "masks":
        return partial(_ids_in_mask, layout, len(class_names), max_pixels)
    ids = {composed(name): i for i, name in enumerate(class_names, start=1)}
    if labels == "xml":
        return partial(_ids_in_annotation, layout, ids)
    if labels == "folders":
        return partial(_ids_of_folders, ids)
    return Table(read_table(layout.root / labels, class_names), str(layout.root / labels))


def multi_hot(class_ids: Iterable[int], num_foreground_classes: int) -> Float32[np.ndarray, " k"]:
    """Convert class ids to a label vector.

    >>> multi_hot((1, 3), 3).tolist()
    [1.0, 0.0, 1.0]
    """
    vector = np.zeros(num_foreground_classes, dtype=np.float32)
    vector[[i - 1 for i in class_ids]] = 1.0
    return vector


class Table:
    """Labels of one file; names match in any Unicode form."""

    def __init__(self, class_ids: dict[str, tuple[int, ...]], origin: str) -> None:
        self._class_ids = {composed(name): ids for name, ids in class_ids.items()}
        self._origin = origin
        self.names = tuple(class_ids)

    def __call__(self, name: str) -> tuple[int, ...]:
        """Return the class ids of the image."""
        ids = self._class_ids.get(composed(name))
        if ids is None:
            raise ValueError(f"{self._origin}: there is no label of {name!r}.{self._advice(name)}")
        return ids

    def _advice(self, name: str) -> str:
        """Advise if the file has a similar name, such as one with a suffix."""

        def plain(other: str) -> str:
            path = PurePosixPath(other.replace("\\", "/"))
            return str(path.with_suffix("") if path.suffix.lower() in _IMAGE_SUFFIXES else path)

        similar = next(
            (other for other in self.names if composed(plain(other)) == composed(name)), None
        )
        return (
            ""
            if similar is None
            else f" It names {similar!r}: write names without suffix, and with / between folders."
        )


def _ids_in_mask(
    layout: Layout, num_foreground_classes: int, max_pixels: int, name: str
) -> tuple[int, ...]:
    mask = read_mask(layout.mask_path(name), num_foreground_classes, max_pixels)
    return tuple(i for i in ids_in(mask) if i not in (0, IGNORE_INDEX))


def _ids_in_annotation(layout: Layout, ids: Mapping[str, int], name: str) -> tuple[int, ...]:
    """Read class ids from XML; difficult objects count, as in the label files of the field."""
    path = layout.annotation_path(name)
    try:
        root = read_xml(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such annotation.") from None
    except OSError as error:
        raise ValueError(f"{path}: the annotation cannot be read: {error.strerror}.") from error
    if root.tag != "annotation":
        raise ValueError(
            f"{path}: expected an annotation of VOC's form, <annotation>, but it is <{root.tag}>."
        )
    object_names = {composed(item.findtext("name", "").strip()) for item in root.findall("object")}
    if unknown := sorted(object_names - ids.keys()):
        raise ValueError(
            f"{path}: {', '.join(map(repr, unknown))} is not in the class list: {', '.join(ids)}."
        )
    return tuple(sorted(ids[item] for item in object_names))


def _ids_of_folders(ids: Mapping[str, int], name: str) -> tuple[int, ...]:
    folders = PurePosixPath(composed(name)).parent.parts
    class_ids = {ids[folder] for folder in folders if folder in ids}
    if len(class_ids) != 1:
        raise ValueError(
            f"{name!r}: expected one folder with the name of a class, found {len(class_ids)} among "
            f"{', '.join(folders) or 'none'}; the classes are {', '.join(ids)}."
        )
    return tuple(class_ids)
