"""CAM mIoU over the background threshold, of the last block and of the auxiliary block."""

from __future__ import annotations

from collections.abc import Iterable

from sweeps.core.report.curves import Panel, Points
from sweeps.core.report.section import Card, Section, Source
from toco.tracking import RunRecord


def _points(name: str) -> Points:
    def find(run: RunRecord) -> Iterable[tuple[float, float | None]]:
        curve = (run.last_evaluation or {}).get("threshold_curve") or {}
        return zip(curve.get("thresholds", ()), curve.get(name, ()), strict=True)

    return find


def _show(source: Source) -> Card | str:
    panels = (
        Panel("CAM mIoU (%)", _points("cam_miou"), 100),
        Panel("aux CAM mIoU (%)", _points("aux_cam_miou"), 100),
    )
    draw = source.curves.plan(panels, "background threshold", "thresholds", "CAM mIoU over the background threshold")
    if draw is None:
        return "no run folder of a finished trial has a curve over thresholds"
    caption = (
        "mIoU of the CAMs where a pixel is background at or below the threshold; means over seeds of the last "
        "evaluation."
    )
    return Card(caption, draw, notes=source.curves.notes)


THRESHOLDS = Section("thresholds", "CAM quality by background threshold", _show)
