"""mIoU over the background threshold, of each CAM that the rows' methods make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sweeps.core.report.curves import Panel, Points
from sweeps.core.report.section import Card, Section, Source
from toco.evaluate.report import title_of
from toco.tracking import RunRecord


def _curve(run: RunRecord) -> Mapping[str, Any]:
    return (run.last_evaluation or {}).get("threshold_curve") or {}


def _points(name: str) -> Points:
    def find(run: RunRecord) -> Iterable[tuple[float, float | None]]:
        curve = _curve(run)
        return zip(curve["thresholds"], curve[name], strict=True) if name in curve else ()

    return find


def _show(source: Source) -> Card | str:
    runs = [run for block in source.curves.blocks for line in block.lines for run in line.runs]
    names = dict.fromkeys(name for run in runs for name in _curve(run) if name.endswith("_miou"))
    panels = [Panel(f"{title_of(name.removesuffix('_miou'))} mIoU (%)", _points(name), 100) for name in names]
    draw = source.curves.plan(panels, "background threshold", "thresholds", "CAM mIoU over the background threshold")
    if draw is None:
        return "no run folder of a finished trial has a curve over thresholds"
    caption = (
        "mIoU of the CAMs where a pixel is background at or below the threshold; means over seeds of the last "
        "evaluation."
    )
    return Card(caption, draw, notes=source.curves.notes)


THRESHOLDS = Section("thresholds", "CAM quality by background threshold", _show)
