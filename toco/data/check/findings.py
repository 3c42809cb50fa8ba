"""Report of a data set check: faults, and notes on what may be a mistake."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from toco.data._dataset import Dataset, Finding
from toco.data.files.file_dataset import FileDataset
from toco.data.files.layout import composed, count, examples
from toco.data.files.tree import read_tree
from toco.files import printable
from toco.types import IGNORE_INDEX

_NOT_MASKS = frozenset({".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".npy"})


@dataclass(slots=True)
class Report:
    """Faults and notes of a check, in the order of their discovery.

    Attributes:
        faults: Problems that the user must fix; empty for a valid data set.
        notes: Remarks on what may be intended.
        num_images: Number of images by list.
        num_images_by_class: Number of training images by class.
    """

    faults: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    num_images: dict[str, int] = field(default_factory=dict)
    num_images_by_class: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """Format the report as text, faults first."""
        lines = [f"FAULT {fault}" for fault in self.faults] + [
            f"note  {note}" for note in self.notes
        ]
        lines.append(
            "images: " + ", ".join(f"{name} {count}" for name, count in self.num_images.items())
        )
        lines.append(
            "train images by class: "
            + ", ".join(f"{n} {c}" for n, c in self.num_images_by_class.items())
        )
        lines.append(f"{len(self.faults)} faults, {len(self.notes)} notes.")
        return "\n".join(printable(line) for line in lines)

    def fault(self, error: Exception | str, paths: Sequence[Path]) -> None:
        """Add a fault of the path with which the message begins, else of the first path."""
        message = str(error)
        path = next(
            (path for path in paths if message.startswith((f"{path}: ", f"{path} "))), paths[0]
        )
        self.faults.append(
            Finding(path, message.removeprefix(str(path)).removeprefix(":").lstrip())
        )

    def note(self, path: Path, reason: str) -> None:
        """Add a note."""
        self.notes.append(Finding(path, reason))

    def overlap(self, path: Path, shared: str | None, allowed: bool) -> None:
        """Add the message on images in both splits, as a note if allowed, else as a fault."""
        if shared is not None:
            (self.notes if allowed else self.faults).append(Finding(path, shared))


@dataclass(slots=True)
class ImageStatistics:
    """Properties of the images of both splits.

    Attributes:
        small: Images with a short side.
        converted: Images that are not stored in RGB.
        rotated: Images with an EXIF orientation.
        void: Images whose mask is void everywhere.
        unnamed: Images by class, where the mask has the class and the label does not.
        by_pixels: Images by a digest of their pixels.
        in_train: Number of training images by class of their label.
        label_counts: Number of images with a mask by class of their label.
        mask_counts: Number of images by class of their mask.
        mask_ids: All ids in masks.
    """

    small: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    rotated: list[str] = field(default_factory=list)
    void: list[str] = field(default_factory=list)
    unnamed: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    by_pixels: defaultdict[bytes, list[str]] = field(default_factory=lambda: defaultdict(list))
    in_train: Counter[int] = field(default_factory=Counter)
    label_counts: Counter[int] = field(default_factory=Counter)
    mask_counts: Counter[int] = field(default_factory=Counter)
    mask_ids: set[int] = field(default_factory=set)


def note_images(
    train: Dataset, val: Dataset, statistics: ImageStatistics, small_side_px: int, report: Report
) -> None:
    """Note images that are small, converted, rotated by EXIF, or duplicates."""
    path = train.layout.images if isinstance(train, FileDataset) else Path("images")
    for names, what in (
        (statistics.small, f"with a side under {small_side_px} px"),
        (statistics.converted, "not in RGB, which are converted"),
        (
            statistics.rotated,
            "with an EXIF orientation, which is ignored, since masks refer to the stored pixels "
            "(`predict` rotates files)",
        ),
    ):
        if names:
            report.note(path, f"{count(len(names), 'image')} {what}: {examples(names)}.")
    val_names = set(val.names)
    groups = [names for names in statistics.by_pixels.values() if len(set(names)) > 1]
    across_splits = [
        names for names in groups if 0 < len(val_names.intersection(names)) < len(names)
    ]
    for duplicates, what in (
        (across_splits, "in training and in validation"),
        ([names for names in groups if names not in across_splits], "within a split"),
    ):
        if duplicates:
            group_texts = [" = ".join(names) for names in duplicates]
            report.note(
                path,
                f"images with the same pixels under several names {what}: {examples(group_texts)}.",
            )


def note_masks(class_names: Sequence[str], statistics: ImageStatistics, report: Report) -> None:
    """Note void masks and classes on which masks and labels disagree."""
    path = Path("masks")
    if statistics.void:
        report.note(
            path,
            f"{count(len(statistics.void), 'mask')} void everywhere: {examples(statistics.void)}.",
        )
    for class_id, names in sorted(statistics.unnamed.items()):
        class_text = f"{class_names[class_id - 1]!r} ({class_id})"
        report.note(
            path,
            f"{count(len(names), 'mask')} with {class_text}, which the image's label does not "
            f"name: {examples(names)}.",
        )
    for class_id, number in sorted(statistics.label_counts.items()):
        if not statistics.mask_counts[class_id]:
            class_text = f"{class_names[class_id - 1]!r} ({class_id})"
            images = count(number, "image")
            binary = statistics.mask_ids == {0, IGNORE_INDEX}
            advice = (
                f" All masks hold 0 and {IGNORE_INDEX} alone: draw objects with the ids of their "
                "classes." * binary
            )
            report.note(
                path,
                f"labels name {class_text} in {images} with a mask, and no mask has a pixel of it; "
                f"{IGNORE_INDEX} is void and no class.{advice}",
            )


def note_left_out(datasets: Sequence[FileDataset], report: Report) -> None:
    """Note files in the folders that belong to neither split."""
    # Images.
    used_names = {composed(name) for dataset in datasets for name in dataset.names}
    image_names: set[str] = set()
    for dataset in {dataset.layout.images: dataset for dataset in datasets}.values():
        tree = dataset.tree()
        links = tuple(
            name for name in tree.links if composed(name) not in used_names
        )  # lists may name links
        report.notes += replace(tree, links=links).notes()
        image_names.update(map(composed, (*tree.names, *tree.links)))
        if unused := [name for name in tree.names if composed(name) not in used_names]:
            report.note(
                tree.folder, f"{count(len(unused), 'image')} in neither split: {examples(unused)}."
            )

    # Labels without an image.
    for path, names in {
        dataset.label_path(0): dataset.labelled_names() for dataset in datasets if len(dataset)
    }.items():
        if unmatched_names := [name for name in names if composed(name) not in image_names]:
            report.note(
                path,
                f"{count(len(unmatched_names), 'label')} of images that do not exist: "
                f"{examples(unmatched_names)}.",
            )

    # Masks without an image, and files of other formats.
    for masks in {dataset.layout.masks for dataset in datasets} - {
        dataset.layout.images for dataset in datasets
    }:
        if masks is None or not masks.is_dir():
            continue
        tree = read_tree(masks, (".png",))
        if unmatched_names := [name for name in tree.names if composed(name) not in image_names]:
            report.note(
                masks,
                f"{count(len(unmatched_names), 'mask')} of images that do not exist: "
                f"{examples(unmatched_names)}.",
            )
        if others := {
            suffix: count for suffix, count in tree.others.items() if suffix.lower() in _NOT_MASKS
        }:
            counts = ", ".join(f"{suffix} {number}" for suffix, number in others.items())
            report.note(
                masks,
                f"{count(sum(others.values()), 'file')} left out, since masks are .png files: "
                f"{counts}.",
            )
