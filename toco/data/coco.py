"""COCO 2014: 80 classes, 82 081 training and 40 137 validation images with objects.

Run ``python -m toco data prepare-coco ROOT`` once: it writes labels and masks from the official
annotations. Existing masks work as well if they number the classes from 1 to 80.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from toco.config import RUN_ONLY
from toco.data._dataset import DataConfig, Finding, Split
from toco.data.coco_format.classes import CATEGORY_IDS, COCO_CLASSES
from toco.data.coco_format.masks import numberings
from toco.data.files.file_dataset import FileDataset
from toco.data.files.images import MAX_PIXELS, ids_in, read_ids
from toco.data.files.label_table import read_table
from toco.data.files.labels import LabelsFrom
from toco.data.files.layout import Layout, examples, read_names
from toco.data.files.tree import read_tree
from toco.files import read_json
from toco.types import IGNORE_INDEX

_NUM_READ = 4
"""Prepared masks whose pixels enter the manifest digest."""
_NUM_NUMBERED = 100
"""Masks that are read to detect the numbering of classes.

About one image in seven of COCO shows a class that distinguishes the two numberings.
"""


class Config(DataConfig):
    """COCO 2014.

    Attributes:
        root: Folder with ``train2014``, ``val2014`` and, for ``prepare-coco``, ``annotations``.
        train_list: Name of a list of training images, ``NAME.txt`` in ``root``; ``None`` takes all
            images that have a label.
        val_list: Name of a list of validation images (``val_part`` of the official code has 5 000).
        mask_folder: Folder with the masks in ``train2014`` and ``val2014``, relative to ``root``.
        labels: Source of image-level labels: ``prepared`` (the files that ``prepare-coco`` wrote
            into ``mask_folder``), ``masks``, or a ``.csv``, ``.json`` or ``.npz`` file of both
            splits, relative to ``root``.
        allow_empty_labels: Accept training images without any class, and train on them as pure
            background.
        max_pixels: Most pixels of an image; larger images are refused before they are decoded.
    """

    name: str = "coco"
    root: Path = Field(default=Path("coco"), json_schema_extra={RUN_ONLY: True})
    train_list: str | None = None
    val_list: str | None = None
    mask_folder: Path = Path("masks80")
    labels: Literal["prepared", "masks"] | Path = "prepared"
    allow_empty_labels: bool = False
    max_pixels: int = Field(default=MAX_PIXELS, gt=0, json_schema_extra={RUN_ONLY: True})


class CocoFolder(FileDataset):
    """Split of COCO.

    Args:
        layout: Paths of images, masks and labels.
        names: Names of the images.
        labels: Source of image-level labels.
        config: Configuration of the data set.
        allow_empty_labels: Whether an image may have no class. The setting of ``config`` is that of
            training images; validation images always may.
        annotations_sha256: SHA-256 of the annotation file that the masks were prepared from;
            ``None`` for masks from another source.
        notes: Remarks on skipped files, where the folder of masks defines the list of images.
    """

    def __init__(
        self,
        layout: Layout,
        names: tuple[str, ...],
        labels: LabelsFrom,
        config: Config,
        allow_empty_labels: bool,
        annotations_sha256: str | None,
        notes: Sequence[Finding] = (),
    ) -> None:
        super().__init__(
            layout,
            names,
            COCO_CLASSES,
            labels,
            config,
            allow_empty_labels=allow_empty_labels,
            max_pixels=config.max_pixels,
            notes=notes,
        )
        self.annotations_sha256 = annotations_sha256

    def _mask_digest(self, index: int) -> bytes:
        """Return the bytes by which a mask enters the digest of the manifest.

        Prepared masks follow from the annotation file, so its digest stands for them. Only a few of
        them are read: this finds a folder of other masks.
        """
        if self.annotations_sha256 is None:
            return super()._mask_digest(index)
        is_read = index % -(-len(self) // _NUM_READ) == 0
        return self.annotations_sha256.encode() + (self.mask(index).tobytes() if is_read else b"")


def open_split(config: Config, split: Split) -> CocoFolder:
    """Open the training or the validation images.

    Raises:
        ValueError: Images, labels or masks are missing, or the masks do not number the classes
            from 1 to 80.
    """
    # Paths of the split.
    part, root = f"{split}2014", config.root
    masks = root / config.mask_folder / part
    layout = Layout(root, root / part, masks, root, root / "annotations", (".jpg",))
    if not layout.images.is_dir():
        raise ValueError(
            f"{layout.images}: expected the images of COCO 2014, but there is no folder; set "
            "data.root."
        )

    # Source of labels.
    labels: LabelsFrom
    if config.labels == "prepared":
        labels = config.mask_folder / f"labels_{part}.json"
        if not (root / labels).is_file():
            raise ValueError(
                f"{root / labels}: the prepared labels do not exist; `python -m toco data "
                f"prepare-coco {root}` writes them and masks from "
                f"annotations/instances_{part}.json. With masks from another source, set "
                "data.mask_folder, and data.labels to masks or to a file."
            )
    else:
        labels = config.labels

    # Names of images: from a list, from the prepared labels, or from the masks.
    notes: tuple[Finding, ...] = ()
    list_name = config.train_list if split == "train" else config.val_list
    if list_name is not None:
        names = read_names(layout, list_name)
    elif config.labels == "prepared":
        names = tuple(read_table(root / labels, COCO_CLASSES))
    elif masks.is_dir():
        tree = read_tree(masks, (".png",), [masks / "about.json"])
        names, notes = tree.names, tree.notes()
    else:
        names = ()
    if not names:
        raise ValueError(
            f"{masks}: expected the masks of the split in this folder, but there are none; set "
            f"data.mask_folder, or without masks data.{split}_list to a list of names."
        )

    # Data set. Validation always needs masks, training only where they are the labels. Validation
    # images without a class are scored, too, and nothing is trained on them.
    allow_empty_labels = config.allow_empty_labels or split == "val"
    annotations_sha256 = _prepared_from(masks / "about.json")
    dataset = CocoFolder(
        layout, names, labels, config, allow_empty_labels, annotations_sha256, notes
    )
    unmasked_names = [name for name in names if not layout.mask_path(name).is_file()]
    if unmasked_names and (split == "val" or config.labels == "masks"):
        raise ValueError(
            f"{masks}: {len(unmasked_names)} of {len(names)} masks are missing: "
            f"{examples(unmasked_names)}. `prepare-coco` continues stopped work."
        )
    if annotations_sha256 is None:
        _refuse_other_numbering(dataset, masks, config)
    return dataset


def _prepared_from(about: Path) -> str | None:
    """Read the SHA-256 of the annotation file from which ``prepare-coco`` made the masks.

    ``None`` for masks from another source.

    Raises:
        UnreadableError: The file is damaged.
    """
    try:
        content = read_json(about)
    except FileNotFoundError:
        return None
    sha256 = content.get("annotations_sha256") if isinstance(content, dict) else None
    return sha256 if isinstance(sha256, str) else None


def _refuse_other_numbering(dataset: CocoFolder, masks: Path, config: Config) -> None:
    """Refuse masks that number the classes in another way than 1 to 80.

    Masks with the category ids of the annotation files (1 to 90, with gaps) look right, but most
    classes would get the name of another class.
    """
    # Ids of evenly spaced masks.
    masked_indices = [
        index
        for index, name in enumerate(dataset.names)
        if dataset.layout.mask_path(name).is_file()
    ]
    by_image: dict[int, set[int]] = {}
    try:
        for index in masked_indices[:: -(-len(masked_indices) // _NUM_NUMBERED) or 1]:
            ids = ids_in(
                read_ids(dataset.layout.mask_path(dataset.names[index]), config.max_pixels)
            )
            by_image[index] = set(ids) - {0, IGNORE_INDEX}
    except ValueError as error:
        raise ValueError(
            f"{error} `prepare-coco` writes masks of ids from the official annotations."
        ) from error

    # Numberings that fit the ids, and, if both fit, that also fit the labels.
    ids_found = sorted(set[int]().union(*by_image.values()))
    fitting_numberings = numberings(ids_found)
    if len(fitting_numberings) > 1 and config.labels != "masks":
        numbers = {80: range(1, len(COCO_CLASSES) + 1), 91: CATEGORY_IDS}
        labels = {index: dataset.class_labels(index) for index in by_image}

        def agrees(numbering: int) -> bool:
            return all(
                labels[index][numbers[numbering].index(i)]
                for index, ids in by_image.items()
                for i in ids
            )

        fitting_numberings = tuple(filter(agrees, fitting_numberings))
    if fitting_numberings == (80,):
        return
    problem = f"{masks}: expected masks with the classes 1 to 80, but their ids {ids_found}"
    advice = "`prepare-coco` writes masks with the classes 1 to 80 from the official annotations."
    if fitting_numberings == (91,):
        raise ValueError(
            f"{problem} are COCO's categories (1 to 90, with gaps). Read as classes 1 to 80, most "
            f"objects would have a wrong class. `python -m toco data convert-coco-masks {masks} "
            f"NEW_FOLDER` renumbers them, and {advice}"
        )
    reason = (
        "could as well be COCO's categories (1 to 90, with gaps)"
        if fitting_numberings
        else "fit neither these classes nor categories"
    )
    raise ValueError(f"{problem} {reason}; {advice}")
