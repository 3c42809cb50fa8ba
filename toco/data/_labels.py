"""Image-level labels from masks, XML annotations, the names of folders, a CSV, a JSON or an npz file."""

from __future__ import annotations

import csv
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Literal
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float32

from toco.data._images import ids_in, read_mask
from toco.data._layout import Layout
from toco.types import IGNORE_INDEX

LabelsFrom = Literal["masks", "xml", "folders"] | Path
"""``masks``, ``xml`` (VOC's annotations), ``folders`` (one of the folders that an image is in has the name of its
class), or a ``.csv``, ``.json`` or ``.npz`` file (relative to the root)."""


class LabelSource(ABC):
    """Answers which classes an image shows."""

    @abstractmethod
    def class_ids(self, name: str) -> tuple[int, ...]:
        """Ids (1..k, ascending) of the classes in the image; empty when there is none.

        Raises:
            ValueError: The source does not know the image, or gives it an id out of range.
        """


def label_source(layout: Layout, labels: LabelsFrom, class_names: tuple[str, ...], max_pixels: int) -> LabelSource:
    """Open a source of labels. A file's labels are all read and validated now; masks and XML when asked for.

    Raises:
        ValueError: The file cannot be read as labels of these classes.
    """
    if labels == "masks":
        return _Masks(layout, len(class_names), max_pixels)
    if labels == "xml":
        return _Annotations(layout, class_names)
    if labels == "folders":
        return _Folders(class_names)
    return Table(read_table(layout.root / labels, class_names), str(layout.root / labels))


def multi_hot(class_ids: Iterable[int], num_foreground_classes: int) -> Float32[np.ndarray, " k"]:
    """The label vector of some class ids.

    >>> multi_hot((1, 3), 3).tolist()
    [1.0, 0.0, 1.0]
    """
    vector = np.zeros(num_foreground_classes, dtype=np.float32)
    vector[[i - 1 for i in class_ids]] = 1.0
    return vector


class Table(LabelSource):
    """Labels that were read from one file."""

    def __init__(self, class_ids: dict[str, tuple[int, ...]], origin: str) -> None:
        self._class_ids = class_ids
        self._origin = origin

    def class_ids(self, name: str) -> tuple[int, ...]:
        """Ids of the classes in the image."""
        if name not in self._class_ids:
            raise ValueError(f"{self._origin}: there is no label of {name!r}.")
        return self._class_ids[name]


class _Masks(LabelSource):
    def __init__(self, layout: Layout, num_foreground_classes: int, max_pixels: int) -> None:
        self._layout, self._num, self._max_pixels = layout, num_foreground_classes, max_pixels

    def class_ids(self, name: str) -> tuple[int, ...]:
        mask = read_mask(self._layout.mask_path(name), self._num, self._max_pixels)
        return tuple(i for i in ids_in(mask) if i not in (0, IGNORE_INDEX))


class _Annotations(LabelSource):
    def __init__(self, layout: Layout, class_names: tuple[str, ...]) -> None:
        self._layout = layout
        self._ids = {name: i for i, name in enumerate(class_names, start=1)}

    def class_ids(self, name: str) -> tuple[int, ...]:
        """All objects count, those marked difficult too, as in the label files the field uses."""
        path = self._layout.annotation_path(name)
        try:
            content = path.read_bytes()
            # An entity can expand to gigabytes or to another file; VOC's annotations declare none.
            if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
                raise ValueError(f"{path}: expected an annotation without a document type or entities.")
            found = [item.findtext("name", "").strip() for item in ElementTree.fromstring(content).findall("object")]  # noqa: S314 - no entities, see above
        except FileNotFoundError:
            raise ValueError(f"{path}: there is no such annotation.") from None
        except ElementTree.ParseError as error:
            raise ValueError(f"{path}: cannot be read as XML ({error}).") from error
        unknown = sorted(set(found) - self._ids.keys())
        if unknown:
            raise ValueError(
                f"{path}: {', '.join(map(repr, unknown))} is not in the class list: {', '.join(self._ids)}."
            )
        return tuple(sorted({self._ids[item] for item in found}))


class _Folders(LabelSource):
    def __init__(self, class_names: tuple[str, ...]) -> None:
        self._ids = {name: i for i, name in enumerate(class_names, start=1)}

    def class_ids(self, name: str) -> tuple[int, ...]:
        folders = PurePosixPath(name).parent.parts
        ids = {self._ids[folder] for folder in folders if folder in self._ids}
        if len(ids) != 1:
            raise ValueError(
                f"{name!r}: expected one folder with the name of a class, found {len(ids)} among "
                f"{', '.join(folders) or 'none'}; the classes are {', '.join(self._ids)}."
            )
        return tuple(ids)


def read_table(path: Path, class_names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Read a file of labels as ``{name: ids}``, ids ascending from 1.

    - ``.csv``: columns ``name`` and ``class_ids`` (separated by spaces); other columns are left alone.
    - ``.json``: ``{"2007_000063": [9, 12], ...}``.
    - ``.npz``: ``names`` (text, n) and ``class_labels`` (0 or 1, n x k), as ``convert_labels`` writes it.

    Raises:
        ValueError: The file is missing or of another kind, names an image twice, or has an id out of range.
    """
    readers = {".csv": _read_csv, ".json": _read_json, ".npz": _read_npz}
    if path.suffix not in readers:
        raise ValueError(
            f"{path}: expected labels in a {', '.join(readers)} file; `python -m toco data convert-labels` makes one "
            "of the official cls_labels_onehot.npy."
        )
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file of labels.")
    try:
        rows = readers[path.suffix](path, len(class_names))
    except (ValueError, KeyError, TypeError, OSError, RecursionError, zipfile.BadZipFile, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as labels ({error}).") from error
    table: dict[str, tuple[int, ...]] = {}
    for name, ids in rows:
        wrong = [i for i in ids if not 1 <= i <= len(class_names)]
        if wrong:
            raise ValueError(f"{path}: {name!r} has the class ids {wrong}, expected 1..{len(class_names)}.")
        if name in table:
            raise ValueError(f"{path}: {name!r} is there twice.")
        table[name] = tuple(sorted(set(ids)))
    return table


_Rows = list[tuple[str, list[int]]]


def _read_csv(path: Path, num_classes: int) -> _Rows:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        if not {"name", "class_ids"} <= set(reader.fieldnames or ()):
            raise ValueError(f"expected the columns name and class_ids, found {reader.fieldnames}")
        return [(row["name"], [int(i) for i in (row["class_ids"] or "").split()]) for row in reader]


def _read_json(path: Path, num_classes: int) -> _Rows:
    # A list of pairs instead of a dict, so that a name that is there twice is seen.
    content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=list)
    if not isinstance(content, list) or not all(isinstance(row, tuple) for row in content):
        raise ValueError("expected one object of names with lists of class ids")
    for name, ids in content:
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise ValueError(f"expected a list of class ids for {name!r}, found {ids!r}")
    return content


def _read_npz(path: Path, num_classes: int) -> _Rows:
    with np.load(path, allow_pickle=False) as arrays:
        names, labels = arrays["names"], arrays["class_labels"]
    if labels.shape != (len(names), num_classes):
        raise ValueError(f"expected labels of shape {(len(names), num_classes)}, found {labels.shape}")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("expected labels 0 and 1 only")
    return [(str(name), (np.flatnonzero(row) + 1).tolist()) for name, row in zip(names, labels, strict=True)]
