"""Folder of images with image-level labels, for data sets of users.

It needs a ``classes.txt`` and labels: a label file, or one subfolder per class. Masks are optional.
Without masks an evaluation reports label metrics and pictures, but no pixel scores. 16-bit grey
images, as in medicine and remote sensing, need the setting ``levels``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from toco.config import RUN_ONLY
from toco.data._dataset import DataConfig, Finding, Split
from toco.data.files.file_dataset import FileDataset
from toco.data.files.images import FORMATS, MAX_PIXELS, Levels
from toco.data.files.layout import Layout, leads_out, lookalike_pairs, read_class_names, read_names
from toco.data.files.tree import read_tree

_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
_ANY_CASE = tuple(
    spelt for suffix in _SUFFIXES for spelt in (suffix, suffix.upper(), suffix.title())
)
_HASH_BYTES = 8  # of SHA-256, enough to split images evenly


class Config(DataConfig):
    """Folder of images.

    The name of an image is its path below ``root`` without suffix, as in ``north/2021/tile_7``.

    Attributes:
        root: Folder with JPEG, PNG and TIFF images, also in subfolders. Hidden folders are skipped.
            Links are followed, except links back into the folder.
        classes: File of class names, one per line, relative to ``root``.
        labels: Source of image-level labels: a ``.csv``, ``.json`` or ``.npz`` file relative to
            ``root``; ``folders`` (the image lies in a folder with the name of its class); or
            ``masks``.
        train_list: Name of a list of training images, ``NAME.txt`` in ``root``. By default
            ``train.txt`` and ``val.txt`` are used if they exist; else all images are split.
        val_list: Name of a list of validation images; set both lists or none.
        val_share: Share of validation images when there are no lists. The name of an image decides
            its split, so that a new image does not move others.
        masks: Folder of masks, absolute or relative to ``root``: index PNGs with the names of the
            images. ``None`` without masks; there are no pixel scores then.
        levels: Grey levels that become 0 and 255 in images of more than 8 bits, such as
            ``[0, 4095]``. Levels in between are scaled linearly, others are clipped. Such images
            are refused without this setting. 8-bit images are not changed.
        allow_empty_labels: Accept training images without any class, and train on them as pure
            background.
        max_pixels: Most pixels of an image; larger images are refused before they are decoded.
    """

    name: str = "folder"
    root: Path = Field(default=Path("images"), json_schema_extra={RUN_ONLY: True})
    classes: Path = Path("classes.txt")
    labels: Literal["folders", "masks"] | Path = Path("labels.csv")
    train_list: str | None = None
    val_list: str | None = None
    val_share: float = Field(default=0.2, gt=0, lt=1)
    masks: Path | None = None
    levels: Levels | None = None
    allow_empty_labels: bool = False
    max_pixels: int = Field(default=MAX_PIXELS, gt=0, json_schema_extra={RUN_ONLY: True})

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        if (self.train_list is None) != (self.val_list is None):
            raise ValueError("train_list and val_list belong together; set both or none")
        if self.labels == "masks" and self.masks is None:
            raise ValueError("labels from masks need a folder of masks; set data.masks")
        if self.levels is not None and self.levels[0] >= self.levels[1]:
            raise ValueError(
                f"levels have to be the lower and the higher one; got {list(self.levels)}"
            )
        return self


def open_split(config: Config, split: Split) -> FileDataset:
    """Open the training or the validation images.

    Raises:
        ValueError: The folder, the classes, a list, an image or a label is missing or wrong.
    """
    root = config.root
    if not root.is_dir():
        raise ValueError(f"{root}: expected a folder of images, but there is none; set data.root.")
    masks = None if config.masks is None else root / config.masks
    if masks is not None and not masks.is_dir():
        raise ValueError(
            f"{masks}: expected a folder of masks, but there is none; set data.masks, or null if "
            "none."
        )
    if masks is not None and masks.resolve() == root.resolve():
        masks = root  # the same path as for images, so that no mask is read as an image
    layout = Layout(root, root, masks, root, root, _ANY_CASE)
    notes: list[Finding] = []
    class_names = read_class_names(layout, root / config.classes, notes)
    non_images = _non_images(config, layout)
    return FileDataset(
        layout,
        _names(config, layout, split, non_images, notes),
        class_names,
        config.labels,
        config,
        allow_empty_labels=config.allow_empty_labels or split == "val",
        max_pixels=config.max_pixels,
        formats=(*FORMATS, "TIFF"),
        levels=config.levels,
        notes=notes,
        non_images=non_images,
        name_list=layout.list_path(_lists(config)[split]) if _has_lists(config, layout) else None,
    )


def is_for_validation(name: str, val_share: float) -> bool:
    """Whether an image belongs to the validation split when there are no lists.

    >>> [name for name in map(str, range(8)) if is_for_validation(name, 0.4)]
    ['0', '3', '4']
    """
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:_HASH_BYTES])
    return number < val_share * float(256**_HASH_BYTES)


def _names(
    config: Config, layout: Layout, split: Split, non_images: Sequence[Path], notes: list[Finding]
) -> tuple[str, ...]:
    if _has_lists(config, layout):
        return read_names(layout, _lists(config)[split], leads_out)
    tree = read_tree(layout.root, _ANY_CASE, non_images)
    if duplicates := [name for name, count in Counter(tree.names).items() if count > 1]:
        raise ValueError(
            f"{layout.root}: {duplicates[0]!r} is the name of several images; rename all but one."
        )
    if pairs := lookalike_pairs(tree.names):
        first, second = map(ascii, pairs[0])
        raise ValueError(
            f"{layout.root}: the names {first} and {second} differ only in their Unicode form; "
            "rename one."
        )
    notes += tree.notes()
    names = tuple(
        name for name in tree.names if is_for_validation(name, config.val_share) == (split == "val")
    )
    if not names:
        raise ValueError(
            f"{layout.root}: of the {len(tree.names)} images there ({', '.join(_SUFFIXES)}), none "
            f"is for {split}; change data.val_share, or write train.txt and val.txt."
        )
    return names


def _has_lists(config: Config, layout: Layout) -> bool:
    """Whether lists, and not the contents of the folder, define the splits."""
    has_list_file = any(layout.list_path(name).is_file() for name in _lists(config).values())
    return config.train_list is not None or has_list_file


def _lists(config: Config) -> dict[Split, str]:
    return {"train": config.train_list or "train", "val": config.val_list or "val"}


def _non_images(config: Config, layout: Layout) -> tuple[Path, ...]:
    """Return the files and folders that the config names, which are no images."""
    files = [layout.root / config.classes, *map(layout.list_path, _lists(config).values())]
    if config.labels not in ("folders", "masks"):
        files.append(layout.root / config.labels)
    if layout.masks is not None and layout.masks != layout.root:
        files.append(layout.masks)
    return tuple(files)
