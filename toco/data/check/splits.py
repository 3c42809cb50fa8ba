"""Check the two splits of a data set, image by image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from toco.data._dataset import Dataset
from toco.data.check.findings import ImageStatistics, Report, note_images, note_left_out, note_masks
from toco.data.files.file_dataset import FileDataset
from toco.data.files.images import ids_in
from toco.data.files.splits import note_of_classes, overlap
from toco.types import IGNORE_INDEX

SMALL_SIDE_PX = 32
"""Default: images with a smaller side are noted."""
_UPRIGHT = 1  # EXIF orientation


def check_splits(
    train: Dataset,
    val: Dataset,
    *,
    allow_overlap: bool = False,
    small_side_px: int = SMALL_SIDE_PX,
    progress: bool = False,
) -> Report:
    """Decode every image and mask of an opened data set and report all faults.

    Opening a data set already refuses faulty lists and classes and missing images. Faults here are:

    - an image in both splits, or one that cannot be decoded;
    - a missing or wrong label;
    - a missing or wrong mask, if the mask is read (in validation, or as the source of labels).

    Notes are on:

    - skipped files: links, other suffixes, hidden files, images in no split, labels and masks
      without an image;
    - classes that no training image or no mask shows, and masks with classes that the label does
      not name;
    - masks that are void everywhere, or wrong masks that no training reads;
    - images that are small, not RGB, rotated by EXIF, or duplicates.

    Args:
        train: Training images.
        val: Validation images.
        allow_overlap: Whether an image may be in both splits.
        small_side_px: Images with a smaller side are noted.
        progress: Whether to show a progress bar.
    """
    report = Report(num_images={"train": len(train), "val": len(val)})
    report.overlap(Path("val"), overlap(train.names, val.names), allow_overlap)
    masks_are_labels = isinstance(train, FileDataset) and train.labels_from == "masks"
    check = Check(
        train=train,
        val=val,
        report=report,
        masks_are_labels=masks_are_labels,
        small_side_px=small_side_px,
    )
    return check.run(progress)


@dataclass(slots=True, kw_only=True)
class Check:
    """Pass over the images of both splits.

    Attributes:
        train: Training images.
        val: Validation images.
        report: Report to which the pass adds faults and notes.
        has_masks: Whether masks can be read.
        has_labels: Whether labels can be read.
        masks_are_labels: Whether the labels of the training images come from their masks.
        small_side_px: Images with a smaller side are noted.
        statistics: Properties of the images that are already checked.
    """

    train: Dataset
    val: Dataset
    report: Report
    has_masks: bool = True
    has_labels: bool = True
    masks_are_labels: bool = False
    small_side_px: int
    statistics: ImageStatistics = field(default_factory=ImageStatistics)

    def run(self, progress: bool) -> Report:
        """Decode all images, then add the notes on images, masks, classes and unused files."""
        train, val, statistics, report = self.train, self.val, self.statistics, self.report
        images = [(dataset, index) for dataset in (train, val) for index in range(len(dataset))]
        for dataset, index in tqdm(images, unit="image", leave=False, disable=not progress):
            ids = self._check_sample(dataset, index)
            if dataset is train:
                statistics.in_train.update(ids)

        report.notes += (*train.notes, *val.notes)
        note_images(train, val, statistics, self.small_side_px, report)
        if self.has_masks:
            note_masks(train.class_names, statistics, report)
        by_class = {
            name: statistics.in_train[i] for i, name in enumerate(train.class_names, start=1)
        }
        report.num_images_by_class = by_class
        if (
            self.has_labels
            and (note := note_of_classes(train.class_names, list(by_class.values()))) is not None
        ):
            report.notes.append(note)
        note_left_out(
            [dataset for dataset in (train, val) if isinstance(dataset, FileDataset)], report
        )
        report.faults, report.notes = (
            list(dict.fromkeys(report.faults)),
            list(dict.fromkeys(report.notes)),
        )
        return report

    def _check_sample(self, dataset: Dataset, index: int) -> set[int]:
        """Check one image and return the classes of its label.

        At most one fault is reported per file.
        """
        paths = _files_of(dataset, index)
        faults = Report()
        self._check_image(dataset, index, paths, faults)
        in_mask = self._check_mask(dataset, index, paths, faults) if self.has_masks else None
        labelled: set[int] | None = None
        if self.has_labels:
            try:
                labelled = {int(i) + 1 for i in np.flatnonzero(dataset.class_labels(index))}
            except ValueError as error:
                faults.fault(error, paths)
        self.report.faults += {fault.path: fault for fault in reversed(faults.faults)}.values()
        has_masks = not isinstance(dataset, FileDataset) or dataset.layout.masks is not None
        if in_mask is not None and has_masks:
            self._compare(dataset.names[index], in_mask, labelled)
        return labelled or set()

    def _check_image(
        self, dataset: Dataset, index: int, paths: tuple[Path, ...], faults: Report
    ) -> None:
        """Decode the image and collect its properties."""
        name, statistics = dataset.names[index], self.statistics
        try:
            image = dataset.image(index)
            if min(image.shape[:2]) < self.small_side_px:
                statistics.small.append(name)
            pixels = hashlib.blake2b(repr(image.shape).encode() + image.tobytes()).digest()
            statistics.by_pixels[pixels].append(name)
            if isinstance(dataset, FileDataset):
                header = dataset.header(index)
                if header.mode != "RGB":
                    statistics.converted.append(name)
                if header.orientation != _UPRIGHT:
                    statistics.rotated.append(name)
        except ValueError as error:
            faults.fault(error, paths)

    def _check_mask(
        self, dataset: Dataset, index: int, paths: tuple[Path, ...], faults: Report
    ) -> set[int] | None:
        """Decode the mask and return its ids; faults of masks that no training reads are notes."""
        is_read = dataset is self.val or self.masks_are_labels
        try:
            return set(ids_in(dataset.mask(index)))
        except ValueError as error:
            faults.fault(error, paths)
            if not is_read and faults.faults[-1].path != paths[0]:
                fault = faults.faults.pop()
                self.report.note(fault.path, f"{fault.reason} No training reads this mask.")
        except LookupError as error:
            if is_read:
                faults.fault(str(error.args[0]), paths)
        return None

    def _compare(self, name: str, in_mask: set[int], labelled: set[int] | None) -> None:
        """Collect the classes of the mask and of the label."""
        classes = in_mask - {0, IGNORE_INDEX}
        self.statistics.mask_ids |= in_mask
        self.statistics.mask_counts.update(classes)
        self.statistics.label_counts.update(labelled or ())
        if in_mask == {IGNORE_INDEX}:
            self.statistics.void.append(name)
        for class_id in classes - labelled if labelled is not None else ():
            self.statistics.unnamed[class_id].append(name)


def _files_of(dataset: Dataset, index: int) -> tuple[Path, ...]:
    """List the files of an image; for data without files, its name."""
    if not isinstance(dataset, FileDataset):
        return (Path(dataset.names[index]),)
    layout, name = dataset.layout, dataset.names[index]
    mask = () if layout.masks is None else (layout.mask_path(name),)
    return (layout.image_path(name), *mask, dataset.label_path(index))
