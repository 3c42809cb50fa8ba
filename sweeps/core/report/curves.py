"""The report's curves, drawn from the run folders: over the background threshold, the blocks, the steps.

The noise band is around the base: between it and the base once more with other seeds (A/A) nothing differs, so a
difference inside the band is one that the seeds make by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sweeps.core.design.paper import FIGURE_2
from sweeps.core.design.study import PlannedRow
from sweeps.core.report.drawing import MARKERS, MAX_BLOCKS, MAX_LINES, MUTED, SERIES, STYLE, grid, svg
from sweeps.core.report.table import Table
from sweeps.core.statistics.paired import noise_floor
from sweeps.core.store.study_record import StudyRecord, TrialRecord, values_by_replicate
from toco.tracking import RunRecord
from toco.train.records import METRICS

MANY_PANELS = 4
"""Panels beside each other from which on they are drawn narrower."""

Curve = dict[float, list[float]]
"""Values of all seeds, by position."""


@dataclass(frozen=True, slots=True)
class Line:
    """A row with the run folders of its finished trials."""

    row: PlannedRow
    runs: tuple[RunRecord, ...]

    def curve(self, points: Points) -> Curve:
        """What ``points`` finds in the runs."""
        curve: Curve = {}
        for run in self.runs:
            for x, y in points(run):
                if y is not None:
                    curve.setdefault(x, []).append(y)
        return dict(sorted(curve.items()))


@dataclass(frozen=True, slots=True)
class BlockLines:
    """What the panels of a block draw.

    Attributes:
        title: Heading of the block.
        lines: Its rows, the base first where it has one; at most ``MAX_LINES``.
        left_out: How many rows are not among them.
    """

    title: str
    lines: tuple[Line, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class Lines:
    """The run folders that the curves are drawn from, read once.

    Attributes:
        blocks: At most ``MAX_BLOCKS``.
        twins: The base and the base once more, whose difference is the noise band; ``None`` without an A/A row.
        faults: A sentence for every run folder that is not there or cannot be read, whose curves are left out.
    """

    blocks: tuple[BlockLines, ...]
    twins: tuple[Line, Line] | None
    faults: tuple[str, ...]


Points = Callable[[RunRecord], Iterable[tuple[float, float | None]]]
"""Finds the points of a curve in a run."""


def read_lines(study: StudyRecord) -> Lines:
    """Run folders of the rows that curves show: of a block with many rows the base and the best by the first metric."""
    known: dict[str, RunRecord | None] = {}
    faults: list[str] = []

    def read(trial: TrialRecord) -> RunRecord | None:
        try:
            run = trial.run()
        except ValueError as error:
            faults.append(f"{error} Its curves are left out.")
            return None
        faults.extend(run.faults)
        last = max((row.step for row in run.rows if row.kind == "val"), default=0)
        if last < trial.step:
            faults.append(
                f"{run.path / METRICS} lacks rows: its last evaluation is that of step {last}, not {trial.step}."
            )
        return run

    def line(row: PlannedRow) -> Line:
        counted = [trial for trial in study.trials_of(row) if trial.counts]
        for trial in counted:
            if trial.key not in known:
                known[trial.key] = read(trial)
        return Line(row, tuple(run for trial in counted if (run := known[trial.key]) is not None))

    blocks = []
    for index, block in enumerate(study.blocks[:MAX_BLOCKS]):
        rows = [row for row in study.rows if row.block == index and row.role != "a/a"]
        shown = _shown(study, rows)
        blocks.append(BlockLines(block.title, tuple(map(line, shown)), len(rows) - len(shown)))
    again = next((row for row in study.rows if row.role == "a/a" and row.versus is not None), None)
    twins = None
    if again is not None and again.versus is not None:
        twins = (line(study.rows[again.versus]), line(again))
    return Lines(tuple(blocks), twins, tuple(faults))


def _shown(study: StudyRecord, rows: Sequence[PlannedRow]) -> list[PlannedRow]:
    metric = study.metrics[0]

    def rank(row: PlannedRow) -> tuple[bool, float]:
        values = list(values_by_replicate(study.trials_of(row), metric.key).values())
        mean = float(np.mean(values)) if values else -np.inf
        return row.role != "base", -mean if metric.higher_is_better or not values else mean

    return sorted(sorted(rows, key=rank)[:MAX_LINES], key=lambda row: row.number)


def thresholds(lines: Lines) -> str | None:
    """CAM mIoU over the background threshold, last block and auxiliary block."""

    def points(name: str) -> Points:
        def find(run: RunRecord) -> Iterable[tuple[float, float | None]]:
            curve = (run.last_evaluation or {}).get("threshold_curve") or {}
            return zip(curve.get("thresholds", ()), curve.get(name, ()), strict=True)

        return find

    columns = [_Panel("CAM mIoU (%)", points("cam_miou"), 100), _Panel("aux CAM mIoU (%)", points("aux_cam_miou"), 100)]
    return _curves(lines, columns, "background threshold", "thresholds", "CAM mIoU over the background threshold")


def similarity(lines: Lines, published: bool) -> str | None:
    """Patch similarity after every block, the mean over seeds of the last evaluation; ``published`` adds figure 2."""

    def points(run: RunRecord) -> Iterable[tuple[float, float | None]]:
        return enumerate((run.last_evaluation or {}).get("patch_similarity") or (), start=1)

    columns = [_Panel("cosine similarity", points, 1, ticks=True)]
    beside = {f"paper, {name}": values for name, values in FIGURE_2.items()} if published else {}
    return _curves(lines, columns, "after block", "similarity", "Patch similarity after every block", beside)


def training(study: StudyRecord, table: Table, lines: Lines) -> str | None:
    """Every metric at every evaluation and the total loss; means over seeds, and the seeds themselves faintly."""

    def points(key: str) -> Points:
        return lambda run: ((row.step, row.values.get(key)) for row in run.rows)

    columns = [
        _Panel(
            f"{column.title} (%)" if column.percent else column.title, points(column.key), 100 if column.percent else 1
        )
        for column in table.columns
    ]
    columns.append(_Panel("total training loss", points("train/loss_total"), 1))
    return _curves(lines, columns, "step", "training", f"Metrics and loss over the steps of {study.name}", seeds=True)


@dataclass(frozen=True, slots=True)
class _Panel:
    """One column of panels: what is drawn, and times what. ``ticks``: positions are whole numbers."""

    title: str
    points: Points
    scale: float
    ticks: bool = False


def _curves(
    lines: Lines,
    columns: Sequence[_Panel],
    xlabel: str,
    name: str,
    description: str,
    beside: Mapping[str, Sequence[float]] | None = None,
    seeds: bool = False,
) -> str | None:
    columns = [panel for panel in columns if any(line.curve(panel.points) for b in lines.blocks for line in b.lines)]
    blocks = [b for b in lines.blocks if any(line.curve(panel.points) for panel in columns for line in b.lines)]
    if not blocks or not columns:
        return None
    with rc_context(STYLE):
        num_panels = len(columns) + bool(beside)
        # The page scales a wide figure down, and its letters with it.
        figure, panels = grid(len(blocks), num_panels, 4.6 if num_panels < MANY_PANELS else 3.4)
        for block, row_of_panels in zip(blocks, panels, strict=True):
            for axes, panel in zip(row_of_panels, columns, strict=False):
                _draw_band(axes, block, lines, panel)
                for number, line in enumerate(block.lines):
                    _draw_line(axes, line, number, panel, seeds)
                # Said once in a row of panels, over the first, since it may be wider than a panel.
                heading = f"{block.title}\n" if panel is columns[0] else "\n"
                axes.set(title=f"{heading if len(blocks) > 1 else ''}{panel.title}", xlabel=xlabel)
                if panel.ticks:
                    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            # One legend a block: its colours are the same in all its panels.
            row_of_panels[0].legend(*_of_all(row_of_panels[: len(columns)]))
        if beside:
            _draw_beside(panels[0][-1], beside, xlabel)
            for row_of_panels in panels[1:]:
                row_of_panels[-1].remove()
        return svg(figure, name, description)


def _of_all(panels: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """What a legend of several panels says: a line may have a curve in one of them only."""
    found = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(found.values()), list(found)


def _draw_beside(axes: Axes, published: Mapping[str, Sequence[float]], xlabel: str) -> None:
    for number, (label, values) in enumerate(published.items()):
        places = range(1, len(values) + 1)
        axes.plot(places, values, marker=MARKERS[number], color=SERIES[-1 - number], label=label)
    axes.set(title="Paper, figure 2: ViT-B, VOC train", xlabel=xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


def _draw_line(axes: Axes, line: Line, number: int, panel: _Panel, seeds: bool) -> None:
    curve = line.curve(panel.points)
    if not curve:
        return
    colour = SERIES[number]
    if seeds:
        for run in line.runs:
            single = Line(line.row, (run,)).curve(panel.points)
            axes.plot(list(single), [panel.scale * y[0] for y in single.values()], color=colour, lw=0.7, alpha=0.35)
    axes.plot(
        list(curve),
        [panel.scale * float(np.mean(values)) for values in curve.values()],
        marker=MARKERS[number] if len(curve) <= 24 else None,
        ms=4,
        color=colour,
        label=line.row.label,
    )


def _draw_band(axes: Axes, block: BlockLines, lines: Lines, panel: _Panel) -> None:
    """Around the block's base: as far as base and A/A may be apart at each position."""
    base = next((line for line in block.lines if line.row.role == "base"), None)
    if base is None or lines.twins is None:
        return
    first, again = (twin.curve(panel.points) for twin in lines.twins)
    band = [
        (x, panel.scale * float(np.mean(values)), panel.scale * floor)
        for x, values in base.curve(panel.points).items()
        if x in first and x in again and (floor := noise_floor(first[x], again[x])) is not None
    ]
    if band:
        x, centre, floor = np.array(band).T
        axes.fill_between(x, centre - floor, centre + floor, color=MUTED, alpha=0.16, lw=0, label="noise band (A/A)")
