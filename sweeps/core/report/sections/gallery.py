"""Gallery of CAMs: validation images down, rows of a block across.

Each CAM has the IoU of its image.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sweeps.core.design.study import PlannedRow
from sweeps.core.report.section import Card, Section, Source
from sweeps.core.store.study_record import StudyRecord, TrialRecord
from toco.evaluate.confusions import Confusions, read_confusions
from toco.evaluate.pictures import PANELS
from toco.evaluate.report import title_of

MAX_WIDTH_PX = 240
"""Larger pictures are scaled down: the maps of 448 px would make a page of tens of megabytes."""
MAX_IMAGES, MAX_COLUMNS, MAX_BLOCKS = 4, 8, 6
"""Largest numbers of images, of rows of a block (side by side) and of blocks.

Every picture is stored in the page, so that the page needs no other file: at most 192 of each map.
"""

SHARED = ("image", "mask")
"""Panels of a picture that are equal for all rows, and shown once."""
_STEP = re.compile(r"step_\d+")
_NAME = re.compile("[a-z0-9_]+")
_IOU_OF = {"prediction": "seg"}
"""Names of maps in the confusion matrices, if they differ from the name of the picture's panel."""


@dataclass(frozen=True, slots=True)
class ShownMap:
    """A map of one image.

    Attributes:
        uri: Data URI; ``None`` if the picture is damaged, or the row's method makes no such map.
        iou: Mean IoU over the classes in the image's ground truth, if known.
        is_damaged: Whether the picture is damaged.
    """

    uri: str | None
    iou: float | None
    is_damaged: bool


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """A validation image with its maps.

    Attributes:
        name: Name of the image.
        shared: Data URIs of the image and of its ground truth; empty if all its pictures are
            damaged.
        maps: Maps by name, one for each column.
    """

    name: str
    shared: tuple[str, ...]
    maps: Mapping[str, tuple[ShownMap, ...]]


@dataclass(frozen=True, slots=True)
class Column:
    """Pictures of one trial of a row.

    Attributes:
        label: Label of the row.
        seed: Seed of the trial; the trials of all columns are paired.
        step: Number of optimizer updates.
        pictures: Files by image name.
        confusions: File of the confusion matrices by image; it may be missing.
    """

    label: str
    seed: int
    step: int
    pictures: Mapping[str, Path]
    confusions: Path


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of a block that have pictures.

    ``left_out`` is the number of such rows that are not shown.
    """

    title: str
    columns: tuple[Column, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """Pictures of a block: names and titles of the maps, and the images."""

    block: Block
    maps: Mapping[str, str]
    lines: tuple[GalleryImage, ...]


def _show(source: Source) -> Card | str:
    """Show the first images (by name) that all columns of all blocks have.

    All columns show trials with the same index of the seed, so that their pictures are paired like
    the numbers of the table.
    """
    study = source.study
    blocks = [
        _block(
            study,
            block.title,
            [row for row in study.rows if row.block == number and row.role != "a/a"],
        )
        for number, block in enumerate(study.blocks[:MAX_BLOCKS])
    ]
    blocks = [block for block in blocks if block.columns]
    if not blocks:
        return "no run folder of a finished trial has pictures"
    pictures = [set(column.pictures) for block in blocks for column in block.columns]
    names = sorted(set.intersection(*pictures))[:MAX_IMAGES]
    if not names:
        return "no image has a picture of every row"
    return Card(content=lambda: [_matrix(block, names, source.faults) for block in blocks])


GALLERY = Section("gallery", "CAMs", _show, "gallery.html.j2")


def _block(study: StudyRecord, title: str, rows: Sequence[PlannedRow]) -> Block:
    """Choose the trials to show.

    They have the index of the seed that most rows have.
    """
    finished = [(row, [trial for trial in study.trials_of(row) if trial.counts]) for row in rows]
    places = [trial.replicate for _, trials in finished for trial in trials]
    place = min(
        set(places), key=lambda replicate: (-places.count(replicate), replicate), default=None
    )
    columns: list[Column] = []
    left_out = 0
    for row, trials in finished:
        trial = next((trial for trial in trials if trial.replicate == place), None)
        if trial is not None and len(columns) < MAX_COLUMNS:
            column = _column(row.label, trial)
            columns += [column] if column else []
        elif trial is not None:
            left_out += 1
    return Block(title, tuple(columns), left_out)


def _column(label: str, trial: TrialRecord) -> Column | None:
    folders = sorted(
        path for path in (trial.run_dir / "pictures").glob("step_*") if _STEP.fullmatch(path.name)
    )
    pictures = {path.stem: path for path in folders[-1].glob("*.png")} if folders else {}
    if not pictures:
        return None
    step = int(folders[-1].name.removeprefix("step_"))
    return Column(
        label, trial.seed, step, pictures, trial.run_dir / "evaluations" / f"{folders[-1].name}.npz"
    )


def _ious(path: Path) -> dict[str, dict[str, float]]:
    """Read the IoU by map and image; empty if the confusion matrices cannot be read."""
    try:
        confusions: Confusions = read_confusions(path)
    except (OSError, ValueError):
        return {}
    return {
        name: dict(zip(confusions.names, image_iou(counts).tolist(), strict=True))
        for name, counts in confusions.matrices.items()
    }


def image_iou(confusions: NDArray[np.integer]) -> NDArray[np.float64]:
    """Compute the mean IoU of every image over the classes in its ground truth.

    Args:
        confusions: Confusion matrices ``[images, classes, classes]``; rows are ground truth, void
            pixels are not counted.
    """
    counts = confusions.astype(np.float64)
    true = counts.sum(2)
    union = true + counts.sum(1) - np.diagonal(counts, axis1=1, axis2=2)
    iou = np.divide(
        np.diagonal(counts, axis1=1, axis2=2), union, out=np.zeros_like(union), where=union > 0
    )
    present = true > 0
    total = present.sum(1)
    mean: NDArray[np.float64] = np.divide(
        (iou * present).sum(1), total, out=np.full(len(total), np.nan), where=total > 0
    )
    return mean


def _matrix(block: Block, names: Sequence[str], faults: list[str]) -> Matrix:
    ious = [_ious(column.confusions) for column in block.columns]
    pictures = {
        name: [_panels(column.pictures[name], faults) for column in block.columns] for name in names
    }
    map_names = dict.fromkeys(
        map_name for of_image in pictures.values() for picture in of_image for map_name in picture
    )
    # Methods may make different maps; CAMs come first.
    maps = sorted(
        (name for name in map_names if name not in SHARED),
        key=lambda name: not name.endswith("cam"),
    )
    lines = []
    for name, of_image in pictures.items():
        intact_picture = next(filter(None, of_image), {})
        maps_of_image = {
            map_name: tuple(
                ShownMap(picture.get(map_name), _iou(of_column, map_name, name), not picture)
                for of_column, picture in zip(ious, of_image, strict=True)
            )
            for map_name in maps
        }
        lines.append(
            GalleryImage(
                name,
                tuple(intact_picture[panel] for panel in SHARED if panel in intact_picture),
                maps_of_image,
            )
        )
    return Matrix(block, {name: title_of(name) for name in maps}, tuple(lines))


def _iou(ious: Mapping[str, Mapping[str, float]], name: str, image: str) -> float | None:
    # The file of a picture has the name of its image, with every character other than letters,
    # digits, dots, dashes and underscores replaced.
    for image_name, value in ious.get(_IOU_OF.get(name, name), {}).items():
        if image_name == image or re.sub(r"[^0-9A-Za-z._-]", "_", image_name) == image:
            return value if np.isfinite(value) else None
    return None


def _panels(path: Path, faults: list[str]) -> dict[str, str]:
    """Cut the panels out of a picture, as data URIs.

    A damaged picture has no panels, and adds a sentence to ``faults``.
    """
    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {}).get(PANELS, "{}")
            boxes: dict[str, tuple[float, float, float, float]] = json.loads(text)
            # Names of panels become class names in the page's style.
            if not boxes or not all(map(_NAME.fullmatch, boxes)):
                raise ValueError(f"expected panels with names of maps, got {list(boxes)}")
            return {name: data_uri(image.convert("RGB").crop(box)) for name, box in boxes.items()}
    except Exception as error:  # Pillow, zlib and struct raise many kinds for damaged bytes
        faults.append(f"{path} cannot be read, so its picture is left out: {error}.")
        return {}


def data_uri(image: Image.Image) -> str:
    """Encode the image as WebP in a data URI, at most ``MAX_WIDTH_PX`` wide."""
    if image.width > MAX_WIDTH_PX:
        size = (MAX_WIDTH_PX, round(image.height * MAX_WIDTH_PX / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=86, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
