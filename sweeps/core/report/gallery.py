"""CAMs by row: for a few validation images, the picture of every row under each other, packed into the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sweeps.core.report.study_record import StudyRecord

MAX_WIDTH_PX = 1600
"""Wider pictures are scaled down: a page of 448 px panels would have tens of megabytes."""


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """One validation image.

    Attributes:
        name: Its name.
        pictures: Label of the row, seed, step and the picture as a data URI, row by row.
    """

    name: str
    pictures: tuple[tuple[str, int, int, str], ...]


def gallery(study: StudyRecord, max_images: int = 4) -> list[GalleryImage]:
    """Pictures of the last evaluation of the first finished seed of every row, for images that all those rows have.

    The first images in the order of their names are taken, not the prettiest.
    """
    by_row: dict[str, tuple[int, int, dict[str, Path]]] = {}
    for cell in study.cells:
        for trial in cell.trials:
            if trial.counts and trial.run is not None and trial.run.pictures:
                step = max(trial.run.pictures)
                by_row[cell.label] = (trial.seed, step, {path.stem: path for path in trial.run.pictures[step]})
                break
    if not by_row:
        return []
    common = set.intersection(*(set(paths) for _, _, paths in by_row.values()))
    return [
        GalleryImage(
            name,
            tuple((label, seed, step, data_uri(paths[name])) for label, (seed, step, paths) in by_row.items()),
        )
        for name in sorted(common)[:max_images]
    ]


def data_uri(path: Path) -> str:
    """The picture as WebP in a data URI, at most ``MAX_WIDTH_PX`` wide."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if image.width > MAX_WIDTH_PX:
        image = image.resize((MAX_WIDTH_PX, round(image.height * MAX_WIDTH_PX / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=86, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
