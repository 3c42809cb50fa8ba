"""Curves over thresholds, network blocks and training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sweeps.core.design.paper import FIGURE_2
from sweeps.core.report.curves import Panel, Points
from sweeps.core.report.section import Card, Section, Source
from toco.evaluate.report import title_of
from toco.tracking import RunRecord


def _card(source: Source, draw: Callable[[], str] | None, missing: str, caption: str) -> Card | str:
    if draw is None:
        return f"no run folder of a finished trial has {missing}"
    return Card(caption, draw, notes=source.curves.notes)


def _threshold_curve(run: RunRecord) -> Mapping[str, Any]:
    return (run.last_evaluation or {}).get("threshold_curve") or {}


def _threshold_points(name: str) -> Points:
    def find(run: RunRecord) -> Iterable[tuple[float, float | None]]:
        curve = _threshold_curve(run)
        return zip(curve["thresholds"], curve[name], strict=True) if name in curve else ()

    return find


def _show_thresholds(source: Source) -> Card | str:
    """Show the mIoU of each CAM over the background threshold."""
    runs = [run for block in source.curves.blocks for line in block.lines for run in line.runs]
    names = dict.fromkeys(
        name for run in runs for name in _threshold_curve(run) if name.endswith("_miou")
    )
    panels = [
        Panel(f"{title_of(name.removesuffix('_miou'))} mIoU (%)", _threshold_points(name), 100)
        for name in names
    ]
    draw = source.curves.plan(
        panels, "background threshold", "thresholds", "CAM mIoU over the background threshold"
    )
    caption = (
        "mIoU of the CAMs where a pixel is background at or below the threshold; "
        "means over seeds of the last evaluation."
    )
    return _card(source, draw, "a curve over thresholds", caption)


def _similarity_points(run: RunRecord) -> Iterable[tuple[float, float | None]]:
    return enumerate((run.last_evaluation or {}).get("patch_similarity") or (), start=1)


def _show_similarity(source: Source) -> Card | str:
    """Show the similarity of the patch tokens after every block, which measures over-smoothing."""
    panels = (Panel("cosine similarity", _similarity_points, 1, ticks=True),)
    has_paper = any(block.paper for block in source.study.blocks)
    published = {f"paper, {name}": values for name, values in FIGURE_2.items()} if has_paper else {}
    draw = source.curves.plan(
        panels,
        "after block",
        "similarity",
        "Patch similarity after every block",
        published=published,
    )
    caption = (
        "Mean cosine similarity between all pairs of patch tokens after every block, on validation "
        "images; means over seeds. Near 1 all patches look alike to the classifier, and a CAM of "
        "that block cannot tell object from background."
    )
    return _card(source, draw, "similarities", caption)


def _metric_points(key: str) -> Points:
    return lambda run: ((row.step, row.values.get(key)) for row in run.rows)


def _show_training(source: Source) -> Card | str:
    """Show every metric at every evaluation, and the total training loss."""
    panels = [
        Panel(f"{metric.title} (%)", _metric_points(metric.key), 100)
        if metric.percent
        else Panel(metric.title, _metric_points(metric.key), 1)
        for metric in source.table.metrics
    ]
    panels.append(Panel("total training loss", _metric_points("train/loss_total"), 1))
    description = f"Metrics and loss over the steps of {source.study.name}"
    draw = source.curves.plan(panels, "step", "training", description, seeds=True)
    caption = (
        "Thick lines are means over the seeds, thin lines single trainings; "
        "validation scores at every evaluation."
    )
    return _card(source, draw, "metrics over the steps", caption)


THRESHOLDS = Section("thresholds", "CAM quality by background threshold", _show_thresholds)
SIMILARITY = Section(
    "similarity", "Over-smoothing: similarity of patches by block", _show_similarity
)
TRAINING = Section("training", "Training", _show_training)
