"""Decode a whole data set once and report every fault, before a training meets one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from toco.data._dataset import Dataset
from toco.data._images import ids_in, open_checked, read_image, read_mask
from toco.data._labels import LabelsFrom, LabelSource, label_source
from toco.data._layout import Layout, list_lines, name_fault, read_class_names
from toco.types import IGNORE_INDEX

_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, with the file it is in."""

    path: Path
    reason: str

    def __str__(self) -> str:
        """``path: reason``."""
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found.

    Attributes:
        faults: Everything that has to be mended. The folder is sound when there is none.
        notes: What is worth a look but may be meant.
        num_images: Images by list.
        num_images_by_class: Training images that show each class.
    """

    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]
    num_images: dict[str, int]
    num_images_by_class: dict[str, int]

    def __str__(self) -> str:
        """The report as text, faults first."""
        lines = [f"FAULT {fault}" for fault in self.faults] + [f"note  {note}" for note in self.notes]
        lines.append("images: " + ", ".join(f"{name} {count}" for name, count in self.num_images.items()))
        lines.append("train images by class: " + ", ".join(f"{n} {c}" for n, c in self.num_images_by_class.items()))
        lines.append(f"{len(self.faults)} faults, {len(self.notes)} notes.")
        return "\n".join(lines)


@dataclass(slots=True)
class _Findings:
    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)

    def fault(self, path: Path, reason: str | ValueError) -> None:
        # Readers begin their sentence with the path; it is said once.
        self.faults.append(Fault(path, str(reason).removeprefix(f"{path}: ")))


def check_folder(
    root: Path,
    *,
    train_list: str,
    val_list: str,
    labels: LabelsFrom = "masks",
    classes: Path | None = None,
    mask_folder: str | None = None,
    allow_empty_labels: bool = False,
    min_side_px: int = 32,
    max_pixels: int = 50_000_000,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Decode every image and mask of both lists and report all faults; the arguments mean what they do in the config.

    Faults are: a missing, doubled or escaping name, carriage returns in a list, an image in both lists, an image that
    cannot be decoded, is not RGB or has a side under ``min_side_px``, a mask that is missing where it is needed
    (validation, or labels from masks), cannot be decoded, is drawn in colours, has another size or ids out of range,
    and a missing, empty or unknown label. Notes are an EXIF orientation (ignored, as VOC's masks want it) and a mask
    with classes that the label does not name (in many images: the ids are shifted).

    Args:
        root: The folder.
        train_list: Name of the training list.
        val_list: Name of the validation list.
        labels: Where image-level labels come from.
        classes: File of class names, relative to ``root``.
        mask_folder: Folder of masks.
        allow_empty_labels: Whether a training image may show no class.
        min_side_px: Smaller images are faults: two patches of 16 px are the least that has a neighbour.
        max_pixels: Larger images are faults and are not decoded.
        on_progress: Called with the number of images done and of all images.
    """
    layout, found = Layout.of_voc(root, mask_folder), _Findings()
    try:
        class_names = read_class_names(layout, None if classes is None else root / classes)
    except ValueError as error:
        found.fault(root / (classes or "classes.txt"), error)
        class_names = ()
    source: LabelSource | None = None
    try:
        # Without classes every id would be out of range: one fault is reported, not one an image.
        source = label_source(layout, labels, class_names, max_pixels) if class_names else None
    except ValueError as error:
        found.fault(root / labels, error)

    lists = {list_name: list(_names(layout, list_name, found)) for list_name in dict.fromkeys((train_list, val_list))}
    if train_list == val_list:
        found.fault(layout.list_path(val_list), "is both the training and the validation list.")
    else:
        for name in sorted(set(lists[train_list]) & set(lists[val_list])):
            found.fault(layout.list_path(val_list), f"{name!r} is in {train_list} too.")

    by_class = Counter[int]()
    total = sum(map(len, lists.values()))
    done = 0
    for list_name, names in lists.items():
        for name in names:
            size = _check_image(layout, name, min_side_px, max_pixels, found)
            in_mask: set[int] | None = None
            if class_names:
                mask_needed = list_name == val_list or labels == "masks"
                in_mask = _check_mask(layout, name, size, len(class_names), max_pixels, mask_needed, found)
            if source is not None:
                # A mask that is the label and could not be read has been reported.
                ids = in_mask if labels == "masks" else _check_label(layout, name, labels, source, found)
                if ids is not None:
                    if not ids and list_name == train_list and not allow_empty_labels:
                        found.fault(_label_path(layout, name, labels), f"{name!r} has no class.")
                    if list_name == train_list:
                        by_class.update(ids)
                    if in_mask is not None and in_mask - ids:
                        reason = f"shows the classes {sorted(in_mask - ids)} that the label does not name."
                        found.notes.append(Fault(layout.mask_path(name), reason))
            done += 1
            if on_progress is not None:
                on_progress(done, total)
    return Report(
        tuple(found.faults),
        tuple(found.notes),
        {list_name: len(names) for list_name, names in lists.items()},
        {class_name: by_class[i] for i, class_name in enumerate(class_names, start=1)},
    )


def check_splits(
    train: Dataset,
    val: Dataset,
    *,
    min_side_px: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Decode every image and mask of an opened data set of any kind and report all faults.

    What opening it refuses (lists, classes, missing images) is not looked for again. Faults are an image in both
    splits, one that cannot be decoded or has a side under ``min_side_px``, a missing or wrong label, a mask that is
    wrong, and one that is missing in validation. Notes are as in :func:`check_folder`.

    Args:
        train: The training images.
        val: The validation images.
        min_side_px: Smaller images are faults.
        on_progress: Called with the number of images done and of all images.
    """
    found = _Findings()
    for name in sorted(set(train.names) & set(val.names)):
        found.fault(Path(name), "is for training and for validation.")
    by_class = Counter[int]()
    total, done = len(train) + len(val), 0
    for dataset in (train, val):
        for index in range(len(dataset)):
            ids = _check_sample(dataset, index, dataset is val, min_side_px, found)
            if dataset is train:
                by_class.update(ids)
            done += 1
            if on_progress is not None:
                on_progress(done, total)
    return Report(
        tuple(found.faults),
        tuple(found.notes),
        {"train": len(train), "val": len(val)},
        {name: by_class[i] for i, name in enumerate(train.class_names, start=1)},
    )


def _check_sample(dataset: Dataset, index: int, mask_needed: bool, min_side_px: int, found: _Findings) -> set[int]:
    """Classes of an image that its label names."""
    path = Path(dataset.names[index])
    ids: set[int] | None = None
    try:
        height, width, _ = dataset.image(index).shape
        if min(height, width) < min_side_px:
            found.fault(path, f"expected at least {min_side_px} px a side, but it has {width} x {height}.")
    except ValueError as error:
        found.fault(path, error)
    try:
        ids = {int(i) + 1 for i in np.flatnonzero(dataset.class_labels(index))}
    except ValueError as error:
        found.fault(path, error)
    try:
        in_mask = set(ids_in(dataset.mask(index))) - {0, IGNORE_INDEX}
        if ids is not None and in_mask - ids:
            reason = f"its mask shows the classes {sorted(in_mask - ids)} that the label does not name."
            found.notes.append(Fault(path, reason))
    except ValueError as error:
        found.fault(path, error)
    except LookupError as error:
        if mask_needed:
            found.fault(path, str(error))
    return ids or set()


def _names(layout: Layout, list_name: str, found: _Findings) -> Iterator[str]:
    """Usable names of a list, once each; everything else in it is a fault."""
    path = layout.list_path(list_name)
    try:
        lines = list_lines(path)
    except ValueError as error:
        found.fault(path, error)
        return
    if any(line.endswith("\r") for line in lines):
        found.fault(path, "has Windows line ends (CRLF); write it with LF only.")
    names = [line.strip() for line in lines]
    for number, name in enumerate(names[:-1], start=1):
        if not name:
            found.fault(path, f"line {number} is blank.")
    counts = Counter(name for name in names if name)
    if not counts:
        found.fault(path, "is empty.")
    for name, count in counts.items():
        if count > 1:
            found.fault(path, f"{name!r} is there {count} times.")
        reason = name_fault(name)
        if reason:
            found.fault(path, f"{name!r} {reason}.")
        else:
            yield name


def _check_image(
    layout: Layout, name: str, min_side_px: int, max_pixels: int, found: _Findings
) -> tuple[int, int] | None:
    """Height and width, or ``None`` where there is no image to compare with."""
    paths = layout.image_paths(name)
    if len(paths) != 1:
        path = layout.images / name
        found.fault(path, f"expected one image, found {', '.join(p.name for p in paths) or 'none'}.")
    if not paths:
        return None
    path = paths[0]
    try:
        with open_checked(path, max_pixels) as image:
            mode, size = image.mode, (image.height, image.width)
            # PIL decodes a whole PNG to look for it, and cameras write JPEG.
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1) if image.format == "JPEG" else 1
        read_image(path, max_pixels)
    except ValueError as error:
        found.fault(path, error)
        return None
    if mode != "RGB":
        found.fault(path, f"expected an RGB image, but its mode is {mode}; convert it.")
    if min(size) < min_side_px:
        found.fault(path, f"expected at least {min_side_px} px a side, but it has {size[1]} x {size[0]}.")
    if orientation != 1:
        found.notes.append(Fault(path, f"has the EXIF orientation {orientation}, which is ignored."))
    return size


def _check_mask(
    layout: Layout,
    name: str,
    size: tuple[int, int] | None,
    num_foreground_classes: int,
    max_pixels: int,
    needed: bool,
    found: _Findings,
) -> set[int] | None:
    """Foreground classes in the mask, or ``None`` where there is no readable mask."""
    path = layout.mask_path(name)
    if not path.is_file():
        if needed:
            found.fault(path, "there is no such mask.")
        return None
    try:
        mask = read_mask(path, num_foreground_classes, max_pixels)
    except ValueError as error:
        found.fault(path, error)
        return None
    if size is not None and mask.shape != size:
        found.fault(path, f"expected a mask of the image's size {size}, but it has {mask.shape}.")
    if np.all(mask == IGNORE_INDEX):
        found.notes.append(Fault(path, "is void everywhere."))
    return set(ids_in(mask)) - {0, IGNORE_INDEX}


def _check_label(
    layout: Layout, name: str, labels: LabelsFrom, source: LabelSource, found: _Findings
) -> set[int] | None:
    try:
        return set(source.class_ids(name))
    except ValueError as error:
        found.fault(_label_path(layout, name, labels), error)
        return None


def _label_path(layout: Layout, name: str, labels: LabelsFrom) -> Path:
    if labels == "masks":
        return layout.mask_path(name)
    return layout.annotation_path(name) if labels == "xml" else layout.root / labels
