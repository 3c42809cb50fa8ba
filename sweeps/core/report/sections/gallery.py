"""CAMs as a matrix: a few validation images down, the rows of a block across, the IoU of that image under each."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
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
"""Larger pictures are scaled down: a page of 448 px maps would have tens of megabytes."""
MAX_STRIP_PX = 1200
"""The same for a whole strip of panels, where a picture does not say where its panels are."""
MAX_IMAGES, MAX_COLUMNS, MAX_BLOCKS = 4, 8, 6

SHARED = ("image", "mask")
"""Panels of a picture that are the same for all rows, and shown once."""
STRIP = "all"
_STEP = re.compile(r"step_\d+")
_NAME = re.compile("[a-z0-9_]+")
_IOU_OF = {"prediction": "seg", STRIP: "cam"}
"""What the confusion matrices of a map are called, if not as the map."""


@dataclass(frozen=True, slots=True)
class ShownMap:
    """One map.

    Attributes:
        uri: Data URI; ``None`` where the picture is damaged, or the row's method makes no such map.
        iou: Mean IoU over the classes in that image's ground truth, where it is known.
        is_damaged: Whether the picture is damaged.
    """

    uri: str | None
    iou: float | None
    is_damaged: bool = False


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """One validation image.

    Attributes:
        name: Its name.
        shared: Data URIs of the image itself and of its ground truth; empty where the pictures do not tell them.
        maps: By name of the map: one for each column.
    """

    name: str
    shared: tuple[str, ...]
    maps: Mapping[str, tuple[ShownMap, ...]]


@dataclass(frozen=True, slots=True)
class Matrix:
    """The pictures of a block.

    Attributes:
        title: Heading of the block.
        columns: Labels of the rows that have pictures, the base among them.
        left_out: Number of those that are not shown.
        seed: Seed of the base's trial; the others' are those paired with it.
        step: Optimizer updates done.
        maps: Names and titles of the maps.
        lines: The images.
    """

    title: str
    columns: tuple[str, ...]
    left_out: int
    seed: int
    step: int
    maps: Mapping[str, str]
    lines: tuple[GalleryImage, ...]


@dataclass(frozen=True, slots=True)
class _Column:
    """The pictures of a row's trial, by the names of the images, and its confusion matrices by image."""

    label: str
    seed: int
    step: int
    pictures: Mapping[str, Path]
    confusions: Path


@dataclass(frozen=True, slots=True)
class _Block:
    title: str
    columns: tuple[_Column, ...]
    left_out: int


def _show(source: Source) -> Card | str:
    blocks = _blocks(source.study)
    if not blocks:
        return "no run folder of a finished trial has pictures"
    if not _names(blocks):
        return "no image has a picture of every row"
    return Card(content=lambda: _matrices(blocks, source.faults))


GALLERY = Section("gallery", "CAMs", _show, "gallery.html.j2")


def gallery(study: StudyRecord, faults: list[str] | None = None) -> list[Matrix]:
    """A matrix for each block that has pictures of at least one row.

    The images are the first in the order of their names that all columns of all blocks have, not the prettiest. All
    columns show trials of the same place among the seeds, so that what is paired in the table is paired here.

    Args:
        study: The study.
        faults: Gets a sentence for every picture that cannot be read, whose place stays empty.
    """
    return _matrices(_blocks(study), [] if faults is None else faults)


def _blocks(study: StudyRecord) -> list[_Block]:
    """The blocks that have pictures."""
    blocks = [
        _Block(block.title, *_columns(study, [row for row in study.rows if row.block == index and row.role != "a/a"]))
        for index, block in enumerate(study.blocks[:MAX_BLOCKS])
    ]
    return [block for block in blocks if block.columns]


def _names(blocks: Sequence[_Block]) -> list[str]:
    """The images to show."""
    pictures = [set(column.pictures) for block in blocks for column in block.columns]
    return sorted(set.intersection(*pictures))[:MAX_IMAGES] if pictures else []


def _matrices(blocks: Sequence[_Block], faults: list[str]) -> list[Matrix]:
    names = _names(blocks)
    return [_matrix(block, names, faults) for block in blocks if names]


def _columns(study: StudyRecord, rows: Sequence[PlannedRow]) -> tuple[tuple[_Column, ...], int]:
    """Columns of the place among the seeds that most rows have pictures of, and how many were left out."""
    ended = [(row, [trial for trial in study.trials_of(row) if trial.counts]) for row in rows]
    places = [trial.replicate for _, trials in ended for trial in trials]
    if not places:
        return (), 0
    place = min(set(places), key=lambda replicate: (-places.count(replicate), replicate))
    columns: list[_Column] = []
    left_out = 0
    for row, trials in ended:
        trial = next((trial for trial in trials if trial.replicate == place), None)
        if trial is not None and len(columns) < MAX_COLUMNS:
            column = _column(row.label, trial)
            columns += [column] if column else []
        elif trial is not None:
            left_out += 1
    return tuple(columns), left_out


def _column(label: str, trial: TrialRecord) -> _Column | None:
    folders = sorted(path for path in (trial.run_dir / "pictures").glob("step_*") if _STEP.fullmatch(path.name))
    pictures = {path.stem: path for path in folders[-1].glob("*.png")} if folders else {}
    if not pictures:
        return None
    step = int(folders[-1].name.removeprefix("step_"))
    return _Column(label, trial.seed, step, pictures, trial.run_dir / "evaluations" / f"{folders[-1].name}.npz")


def _ious(path: Path) -> dict[str, dict[str, float]]:
    """IoU by map and image; empty where the confusion matrices by image are not there."""
    try:
        confusions: Confusions = read_confusions(path)
    except (OSError, ValueError):
        return {}
    return {
        name: dict(zip(confusions.names, image_iou(counts).tolist(), strict=True))
        for name, counts in confusions.matrices.items()
    }


def image_iou(confusions: NDArray[np.integer]) -> NDArray[np.float64]:
    """Mean IoU of every image over the classes in its ground truth.

    Args:
        confusions: ``[images, classes, classes]``, rows are ground truth; void pixels are not counted.
    """
    counts = confusions.astype(np.float64)
    true = counts.sum(2)
    union = true + counts.sum(1) - np.diagonal(counts, axis1=1, axis2=2)
    iou = np.divide(np.diagonal(counts, axis1=1, axis2=2), union, out=np.zeros_like(union), where=union > 0)
    present = true > 0
    total = present.sum(1)
    mean: NDArray[np.float64] = np.divide(
        (iou * present).sum(1), total, out=np.full(len(total), np.nan), where=total > 0
    )
    return mean


def _matrix(block: _Block, names: Sequence[str], faults: list[str]) -> Matrix:
    columns = block.columns
    ious = [_ious(column.confusions) for column in columns]
    lines = []
    for name in names:
        panels = [_read(_panels, column.pictures[name], faults) for column in columns]
        whole = [panel for panel in panels if panel is not None]
        shared: tuple[str, ...] = ()
        if whole and all(whole):
            shared = tuple(whole[0][known] for known in SHARED if known in whole[0])
            made = dict.fromkeys(map_name for panel in whole for map_name in panel if map_name not in SHARED)
            # Methods may make different maps; the CAMs stand first.
            maps = tuple(sorted(made, key=lambda map_name: not map_name.endswith("cam")))
        else:
            panels = [
                None if panel is None else _read(_strip, column.pictures[name], faults)
                for column, panel in zip(columns, panels, strict=True)
            ]
            maps = (STRIP,)
        shown = {
            map_name: tuple(
                ShownMap(panel.get(map_name) if panel else None, _iou(of_column, map_name, name), not panel)
                for of_column, panel in zip(ious, panels, strict=True)
            )
            for map_name in maps
        }
        lines.append(GalleryImage(name, shared, shown))
    return Matrix(
        block.title,
        tuple(column.label for column in columns),
        block.left_out,
        columns[0].seed,
        columns[0].step,
        {
            map_name: "all panels" if map_name == STRIP else title_of(map_name)
            for line in lines
            for map_name in line.maps
        },
        tuple(lines),
    )


def _iou(ious: Mapping[str, Mapping[str, float]], name: str, image: str) -> float | None:
    # A picture's file is named as its image is, with other characters than letters, digits, dots and dashes replaced.
    for known, value in ious.get(_IOU_OF.get(name, name), {}).items():
        if known == image or re.sub(r"[^0-9A-Za-z._-]", "_", known) == image:
            return value if np.isfinite(value) else None
    return None


def _read(read: Callable[[Path], dict[str, str]], path: Path, faults: list[str]) -> dict[str, str] | None:
    """What ``read`` makes of a picture; ``None``, and a sentence in ``faults``, where it is damaged."""
    try:
        return read(path)
    except Exception as error:  # of damaged bytes Pillow, zlib and struct make many kinds
        faults.append(f"{path} cannot be read, so its picture is left out: {error}.")
        return None


def _strip(path: Path) -> dict[str, str]:
    return {STRIP: data_uri(path, MAX_STRIP_PX)}


def _panels(path: Path) -> dict[str, str]:
    """Panels of a picture as data URIs; empty where it does not say where they are."""
    with Image.open(path) as image:
        text = getattr(image, "text", {}).get(PANELS)
        if text is None:
            return {}
        boxes: dict[str, tuple[float, float, float, float]] = json.loads(text)
        if not all(map(_NAME.fullmatch, boxes)):  # they become names in the page's style
            raise ValueError(f"its panels are called {', '.join(boxes)}")
        return {name: _encoded(image.convert("RGB").crop(box), MAX_WIDTH_PX) for name, box in boxes.items()}


def data_uri(path: Path, max_width: int = MAX_WIDTH_PX) -> str:
    """The picture as WebP in a data URI, at most ``max_width`` wide."""
    with Image.open(path) as image:
        return _encoded(image.convert("RGB"), max_width)


def _encoded(image: Image.Image, max_width: int) -> str:
    if image.width > max_width:
        image = image.resize((max_width, round(image.height * max_width / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=86, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
