"""Every metric at every evaluation, and the total training loss."""

from __future__ import annotations

from sweeps.core.report.curves import Panel, Points
from sweeps.core.report.section import Card, Section, Source


def _points(key: str) -> Points:
    return lambda run: ((row.step, row.values.get(key)) for row in run.rows)


def _show(source: Source) -> Card | str:
    panels = [
        Panel(f"{metric.title} (%)", _points(metric.key), 100)
        if metric.percent
        else Panel(metric.title, _points(metric.key), 1)
        for metric in source.table.metrics
    ]
    panels.append(Panel("total training loss", _points("train/loss_total"), 1))
    description = f"Metrics and loss over the steps of {source.study.name}"
    draw = source.curves.plan(panels, "step", "training", description, seeds=True)
    if draw is None:
        return "no run folder of a finished trial has metrics over the steps"
    caption = (
        "Thick lines are means over the seeds, thin lines the trainings themselves; validation scores at every "
        "evaluation."
    )
    return Card(caption, draw, notes=source.curves.notes)


TRAINING = Section("training", "Training", _show)
