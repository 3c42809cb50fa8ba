"""Decode a whole data set once and report every fault, before a training meets one.

A fault is what a training refuses, or fails on. All else that is worth a look is a note.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from toco.data._dataset import DataConfig, Dataset, Fault
from toco.data.files.file_dataset import FileDataset
from toco.data.files.images import MAX_PIXELS, ids_in
from toco.data.files.labels import LabelsFrom, label_source
from toco.data.files.layout import Layout, check_names, composed, count, examples, list_lines, read_class_names
from toco.data.files.splits import note_of_classes, overlap
from toco.data.files.tree import read_tree
from toco.files import printable
from toco.types import IGNORE_INDEX

_NOT_MASKS = frozenset({".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".npy"})
_UPRIGHT = 1


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
        return "\n".join(printable(line) for line in lines)


def check_folder(
    root: Path,
    *,
    train_list: str,
    val_list: str,
    labels: LabelsFrom = "masks",
    classes: Path | None = None,
    mask_folder: str | None = None,
    allow_empty_labels: bool = False,
    allow_overlap: bool = False,
    small_side_px: int = 32,
    max_pixels: int = MAX_PIXELS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Decode every image and mask of both lists of a folder of VOC's shape and report all faults.

    The arguments mean what they do in the config. Unlike :func:`check_splits`, which is given what could be opened, it
    goes on after faults of the lists, the classes and the labels.

    Args:
        root: The folder.
        train_list: Name of the training list.
        val_list: Name of the validation list.
        labels: Where image-level labels come from.
        classes: File of class names, relative to ``root``.
        mask_folder: Folder of masks.
        allow_empty_labels: Whether a training image may show no class.
        allow_overlap: Whether an image may be in both lists.
        small_side_px: Smaller images are noted.
        max_pixels: Larger images are faults and are not decoded.
        on_progress: Called with the number of images done and of all images.
    """
    layout, found = Layout.of_voc(root, mask_folder), _Findings()
    class_names: tuple[str, ...] = ()
    class_file = root / (classes or "classes.txt")
    try:
        class_names = read_class_names(layout, None if classes is None else class_file, found.notes)
    except ValueError as error:
        found.fault(error, (class_file,))
    has_labels = bool(class_names)
    try:
        if class_names:
            label_source(layout, labels, class_names, max_pixels)
    except ValueError as error:
        found.fault(error, (root / labels,))
        has_labels = False

    lists = {"train": _names_of_list(layout, train_list, found), "val": _names_of_list(layout, val_list, found)}
    found.overlap(layout.list_path(val_list), overlap(*lists.values()), allow_overlap)
    datasets = [
        FileDataset(
            layout,
            _with_one_image(layout, names, list_name, found),
            class_names,
            labels if has_labels else "masks",
            DataConfig(name="voc"),
            allow_empty_labels=allow_empty_labels or split == "val",
            max_pixels=max_pixels,
            check_labels=False,
        )
        for (split, names), list_name in zip(lists.items(), (train_list, val_list), strict=True)
    ]
    # Without classes every id of a mask would be out of range: one fault is reported, not one an image.
    checks = _Checks(has_masks=bool(class_names), has_labels=has_labels, masks_are_labels=labels == "masks")
    num_images = {train_list: len(lists["train"]), val_list: len(lists["val"])}
    return _check(datasets[0], datasets[1], found, checks, num_images, small_side_px, on_progress)


def check_splits(
    train: Dataset,
    val: Dataset,
    *,
    allow_overlap: bool = False,
    small_side_px: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Decode every image and mask of an opened data set of any kind and report all faults.

    What opening it refuses (lists, classes, missing images) is not looked for again. Faults are an image in both
    splits, one that cannot be decoded, a missing or wrong label, and a mask that is missing or wrong where it is read
    (in validation, and where labels come from masks). Notes are of:

    - what is left out: links, other suffixes, hidden files, images in no split, labels and masks without an image;
    - classes that no training image or no mask shows, and masks that show what the label does not name;
    - masks that are void everywhere, or wrong where no training reads them;
    - images that are small, not RGB, turned by EXIF, or the same as another.

    Args:
        train: The training images.
        val: The validation images.
        allow_overlap: Whether an image may be in both splits.
        small_side_px: Smaller images are noted.
        on_progress: Called with the number of images done and of all images.
    """
    found = _Findings()
    found.overlap(Path("val"), overlap(train.names, val.names), allow_overlap)
    num_images = {"train": len(train), "val": len(val)}
    checks = _Checks(masks_are_labels=isinstance(train, FileDataset) and train.labels_are_masks())
    return _check(train, val, found, checks, num_images, small_side_px, on_progress)


@dataclass(slots=True)
class _Findings:
    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)

    def fault(self, error: Exception | str, paths: Sequence[Path]) -> None:
        """Add a fault. Readers begin their message with the file, one of ``paths``; else the first one is named."""
        message = str(error)
        path = next((path for path in paths if message.startswith((f"{path}: ", f"{path} "))), paths[0])
        self.faults.append(Fault(path, message.removeprefix(str(path)).removeprefix(":").lstrip()))

    def note(self, path: Path, reason: str) -> None:
        self.notes.append(Fault(path, reason))

    def overlap(self, path: Path, shared: str | None, allowed: bool) -> None:
        if shared is not None:
            (self.notes if allowed else self.faults).append(Fault(path, shared))


@dataclass(frozen=True, slots=True)
class _Checks:
    """What of a data set is checked besides its images."""

    has_masks: bool = True
    has_labels: bool = True
    masks_are_labels: bool = False


@dataclass(slots=True)
class _Seen:
    """What the images of both splits showed: names of images, by what is to be said of them."""

    small: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    void: list[str] = field(default_factory=list)
    unnamed: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    by_pixels: defaultdict[bytes, list[str]] = field(default_factory=lambda: defaultdict(list))
    in_train: Counter[int] = field(default_factory=Counter)
    labelled: Counter[int] = field(default_factory=Counter)
    drawn: Counter[int] = field(default_factory=Counter)
    ids: set[int] = field(default_factory=set)


def _check(
    train: Dataset,
    val: Dataset,
    found: _Findings,
    checks: _Checks,
    num_images: dict[str, int],
    small_side_px: int,
    on_progress: Callable[[int, int], None] | None,
) -> Report:
    seen = _Seen()
    total, done = len(train) + len(val), 0
    for dataset in (train, val):
        for index in range(len(dataset)):
            mask_needed = dataset is val or checks.masks_are_labels
            ids = _check_sample(dataset, index, checks, mask_needed, small_side_px, seen, found)
            if dataset is train:
                seen.in_train.update(ids)
            done += 1
            if on_progress is not None:
                on_progress(done, total)
    found.notes += (*train.notes, *val.notes)
    _note_images(train, val, seen, small_side_px, found)
    if checks.has_masks:
        _note_masks(train.class_names, seen, found)
    by_class = {name: seen.in_train[i] for i, name in enumerate(train.class_names, start=1)}
    if checks.has_labels and (note := note_of_classes(train.class_names, list(by_class.values()))) is not None:
        found.notes.append(note)
    _note_left_out([dataset for dataset in (train, val) if isinstance(dataset, FileDataset)], found)
    return Report(tuple(dict.fromkeys(found.faults)), tuple(dict.fromkeys(found.notes)), num_images, by_class)


def _check_sample(
    dataset: Dataset,
    index: int,
    checks: _Checks,
    mask_needed: bool,
    small_side_px: int,
    seen: _Seen,
    found: _Findings,
) -> set[int]:
    """Check one image and return the classes that its label names. Of each of its files one fault is reported."""
    name = dataset.names[index]
    paths = _files_of(dataset, index)
    own = _Findings()
    ids: set[int] | None = None
    try:
        image = dataset.image(index)
        if min(image.shape[:2]) < small_side_px:
            seen.small.append(name)
        seen.by_pixels[hashlib.blake2b(repr(image.shape).encode() + image.tobytes()).digest()].append(name)
        if isinstance(dataset, FileDataset):
            header = dataset.header(index)
            if header.mode != "RGB":
                seen.converted.append(name)
            if header.orientation != _UPRIGHT:
                seen.turned.append(name)
    except ValueError as error:
        own.fault(error, paths)
    in_mask: set[int] | None = None
    try:
        if checks.has_masks:
            in_mask = set(ids_in(dataset.mask(index)))
    except ValueError as error:
        own.fault(error, paths)
        if not mask_needed and own.faults[-1].path != paths[0]:
            fault = own.faults.pop()
            found.note(fault.path, f"{fault.reason} No training reads this mask.")
    except LookupError as error:
        if mask_needed:
            own.fault(str(error.args[0]), paths)
    try:
        if checks.has_labels:
            ids = {int(i) + 1 for i in np.flatnonzero(dataset.class_labels(index))}
    except ValueError as error:
        own.fault(error, paths)
    found.faults += {fault.path: fault for fault in reversed(own.faults)}.values()
    has_masks = not isinstance(dataset, FileDataset) or dataset.layout.masks is not None
    if in_mask is not None and has_masks:
        classes = in_mask - {0, IGNORE_INDEX}
        seen.ids |= in_mask
        seen.drawn.update(classes)
        seen.labelled.update(ids or ())
        if in_mask == {IGNORE_INDEX}:
            seen.void.append(name)
        for class_id in classes - ids if ids is not None else ():
            seen.unnamed[class_id].append(name)
    return ids or set()


def _files_of(dataset: Dataset, index: int) -> tuple[Path, ...]:
    """The files of an image, or its name for data that lies in none."""
    if not isinstance(dataset, FileDataset):
        return (Path(dataset.names[index]),)
    layout, name = dataset.layout, dataset.names[index]
    mask = () if layout.masks is None else (layout.mask_path(name),)
    return (layout.image_path(name), *mask, dataset.label_path(index))


def _note_images(train: Dataset, val: Dataset, seen: _Seen, small_side_px: int, found: _Findings) -> None:
    path = train.layout.images if isinstance(train, FileDataset) else Path("images")
    for names, what in (
        (seen.small, f"with a side under {small_side_px} px"),
        (seen.converted, "not in RGB, which are converted"),
        (
            seen.turned,
            "with an EXIF orientation, which is ignored, since masks lie on the stored pixels (`predict` turns files)",
        ),
    ):
        if names:
            found.note(path, f"{count(len(names), 'image')} {what}: {examples(names)}.")
    validated = set(val.names)
    groups = [names for names in seen.by_pixels.values() if len(set(names)) > 1]
    across = [names for names in groups if 0 < len(validated.intersection(names)) < len(names)]
    for same, what in (
        (across, "in training and in validation"),
        ([names for names in groups if names not in across], "within a split"),
    ):
        if same:
            shown = [" = ".join(names) for names in same]
            found.note(path, f"images with the same pixels under several names {what}: {examples(shown)}.")


def _note_masks(class_names: Sequence[str], seen: _Seen, found: _Findings) -> None:
    path = Path("masks")
    if seen.void:
        found.note(path, f"{count(len(seen.void), 'mask')} void everywhere: {examples(seen.void)}.")
    for class_id, names in sorted(seen.unnamed.items()):
        shown = f"{class_names[class_id - 1]!r} ({class_id})"
        found.note(
            path, f"{count(len(names), 'mask')} with {shown}, which the image's label does not name: {examples(names)}."
        )
    for class_id, number in sorted(seen.labelled.items()):
        if not seen.drawn[class_id]:
            shown = f"{class_names[class_id - 1]!r} ({class_id})"
            images = count(number, "image")
            binary = seen.ids == {0, IGNORE_INDEX}
            advice = f" All masks hold 0 and {IGNORE_INDEX} alone: draw objects with the ids of their classes." * binary
            found.note(
                path,
                f"labels name {shown} in {images} with a mask, and no mask has a pixel of it; {IGNORE_INDEX} is void "
                f"and no class.{advice}",
            )


def _note_left_out(datasets: Sequence[FileDataset], found: _Findings) -> None:
    """Note what lies in the folders and belongs to neither split."""
    used = {composed(name) for dataset in datasets for name in dataset.names}
    present: set[str] = set()
    for dataset in {dataset.layout.images: dataset for dataset in datasets}.values():
        tree = dataset.tree()
        again = tuple(name for name in tree.again if composed(name) not in used)  # a list takes a link as any file
        found.notes += replace(tree, again=again).notes()
        present.update(map(composed, (*tree.names, *tree.again)))
        if unused := [name for name in tree.names if composed(name) not in used]:
            found.note(tree.folder, f"{count(len(unused), 'image')} in neither split: {examples(unused)}.")
    for path, names in {
        dataset.label_path(0): dataset.labelled_names() for dataset in datasets if len(dataset)
    }.items():
        if without := [name for name in names if composed(name) not in present]:
            found.note(path, f"{count(len(without), 'label')} of images that are not there: {examples(without)}.")
    for masks in {dataset.layout.masks for dataset in datasets} - {dataset.layout.images for dataset in datasets}:
        if masks is None or not masks.is_dir():
            continue
        tree = read_tree(masks, (".png",))
        if without := [name for name in tree.names if composed(name) not in present]:
            found.note(masks, f"{count(len(without), 'mask')} of images that are not there: {examples(without)}.")
        if others := {suffix: count for suffix, count in tree.others.items() if suffix.lower() in _NOT_MASKS}:
            counts = ", ".join(f"{suffix} {number}" for suffix, number in others.items())
            found.note(masks, f"{count(sum(others.values()), 'file')} left out, since masks are .png files: {counts}.")


def _names_of_list(layout: Layout, list_name: str, found: _Findings) -> tuple[str, ...]:
    """Usable names of a list, once each; all that a training would refuse in it is a fault."""
    path = layout.list_path(list_name)
    try:
        lines = list_lines(path)
    except ValueError as error:
        found.fault(error, (path,))
        return ()
    if b"\r" in path.read_bytes():
        found.note(path, "has line ends of Windows, which are dropped.")
    blank = [str(number) for number, line in enumerate(lines, start=1) if not line.strip()]
    if blank:
        found.note(path, f"{count(len(blank), 'blank line')} left out, the first is line {blank[0]}.")
    names, problems = check_names(lines)
    if not names and not problems:
        found.fault("is empty.", (path,))
    for problem in problems:
        found.fault(f"{problem}.", (path,))
    return names


def _with_one_image(layout: Layout, names: Iterable[str], list_name: str, found: _Findings) -> tuple[str, ...]:
    """Those names of a list that are one image each."""
    source = layout.list_path(list_name).name
    sound = []
    for name in names:
        paths = layout.image_paths(name)
        if len(paths) == 1:
            sound.append(name)
        else:
            files = ", ".join(path.name for path in paths) or "none"
            found.fault(f"expected one image, as {source} names it, found {files}.", (layout.images / name,))
    return tuple(sound)
