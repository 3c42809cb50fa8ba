"""PASCAL VOC 2012, and any folder of the same structure with its own ``classes.txt``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from toco.config import RUN_ONLY
from toco.data._dataset import DataConfig, Finding, Split
from toco.data.files.file_dataset import FileDataset
from toco.data.files.images import MAX_PIXELS
from toco.data.files.layout import Layout, read_class_names, read_names


class Config(DataConfig):
    """VOC-shaped folder.

    Attributes:
        root: Folder with ``JPEGImages``, ``ImageSets/Segmentation`` and ``SegmentationClassAug`` or
            ``SegmentationClass`` (``.../VOCdevkit/VOC2012``).
        train_list: Name of the training list (``train_aug`` has 10 582 images, ``train`` 1 464).
        val_list: Name of the validation list (1 449 images).
        labels: Source of image-level labels: ``masks``, ``xml`` (``Annotations``), or a ``.csv``,
            ``.json`` or ``.npz`` file, relative to ``root``.
        classes: File of class names, relative to ``root``; by default ``classes.txt`` in ``root``
            if it exists, else VOC's names.
        mask_folder: Folder of masks in ``root``; by default ``SegmentationClassAug`` if it exists,
            else ``SegmentationClass``.
        allow_empty_labels: Accept training images without any class, and train on them as pure
            background.
        max_pixels: Most pixels of an image; larger images are refused before they are decoded.
    """

    name: str = "voc"
    # The location changes no result: the manifest digest in the run's provenance identifies the
    # data.
    root: Path = Field(default=Path("VOCdevkit/VOC2012"), json_schema_extra={RUN_ONLY: True})
    train_list: str = "train_aug"
    val_list: str = "val"
    labels: Literal["masks", "xml"] | Path = "masks"
    classes: Path | None = None
    mask_folder: str | None = None
    allow_empty_labels: bool = False
    max_pixels: int = Field(default=MAX_PIXELS, gt=0, json_schema_extra={RUN_ONLY: True})


def open_split(config: Config, split: Split) -> FileDataset:
    """Open one split: the images of its list.

    Raises:
        ValueError: The folder or the list does not exist, a listed image does not exist, or an
            entry of a label file is invalid.
    """
    if not config.root.is_dir():
        raise ValueError(
            f"{config.root}: expected a VOC-shaped folder, but there is none; set data.root."
        )
    layout = Layout.of_voc(config.root, config.mask_folder)
    notes: list[Finding] = []
    list_name = config.train_list if split == "train" else config.val_list
    return FileDataset(
        layout,
        read_names(layout, list_name),
        read_class_names(
            layout, None if config.classes is None else config.root / config.classes, notes
        ),
        config.labels,
        config,
        # Only training needs a class in every image. In validation, images without any class count.
        allow_empty_labels=config.allow_empty_labels or split == "val",
        max_pixels=config.max_pixels,
        notes=notes,
        name_list=layout.list_path(list_name),
    )
