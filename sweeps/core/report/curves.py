"""Curves from run folders, read once and drawn by several sections.

The noise band lies around the base. Only the seeds differ between the base and the A/A row, so a
difference inside the band can be caused by seeds alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sweeps.core.design.study import PlannedRow
from sweeps.core.report.drawing import (
    MARKERS,
    MAX_BLOCKS,
    MAX_LINES,
    MUTED,
    SERIES,
    STYLE,
    grid,
    svg,
)
from sweeps.core.statistics.paired import noise_floor
from sweeps.core.store.study_record import StudyRecord, TrialRecord, values_by_replicate
from toco.tracking import RunRecord, read_run_record
from toco.train.records import METRICS

MANY_PANELS = 4
"""Number of panels in a row from which on the panels are narrower, so that they fit a page."""

Curve = dict[float, list[float]]
"""Values of all seeds, by position on the x axis."""


@dataclass(frozen=True, slots=True)
class CurveLine:
    """A row with the run folders of its finished trials."""

    row: PlannedRow
    runs: tuple[RunRecord, ...]

    def curve(self, points: Points) -> Curve:
        """Collect the points of all runs, sorted by position."""
        curve: Curve = {}
        for run in self.runs:
            for x, y in points(run):
                if y is not None:
                    curve.setdefault(x, []).append(y)
        return dict(sorted(curve.items()))


@dataclass(frozen=True, slots=True)
class BlockLines:
    """Rows that the panels of a block draw.

    Attributes:
        title: Heading of the block.
        lines: At most ``MAX_LINES`` rows, among them the base if the block has one.
        left_out: Number of rows that are not drawn.
    """

    title: str
    lines: tuple[CurveLine, ...]
    left_out: int


Points = Callable[[RunRecord], Iterable[tuple[float, float | None]]]
"""Function that finds the points of a curve in a run."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One column of panels.

    Attributes:
        title: Title above the panel.
        points: Function that finds the points of the curve.
        scale: Factor of the drawn values, such as 100 for percent.
        ticks: Whether positions are whole numbers.
    """

    title: str
    points: Points
    scale: float
    ticks: bool = False


@dataclass(frozen=True, slots=True)
class Curves:
    """Run folders that curves are drawn from.

    Attributes:
        blocks: At most ``MAX_BLOCKS`` blocks.
        twins: The base and the A/A row, whose difference is the noise band; ``None`` without an A/A
            row.
        faults: Sentences about run folders that are missing or unreadable; their curves are left
            out.
    """

    blocks: tuple[BlockLines, ...]
    twins: tuple[CurveLine, CurveLine] | None
    faults: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentence about rows without curves, because their block has too many rows."""
        left_out = [
            f"{block.title} has {block.left_out} more" for block in self.blocks if block.left_out
        ]
        return (
            (f"Curves show the base and the best rows of a block: {'; '.join(left_out)}.",)
            if left_out
            else ()
        )

    def plan(
        self,
        panels: Iterable[Panel],
        xlabel: str,
        name: str,
        description: str,
        *,
        published: Mapping[str, Sequence[float]] | None = None,
        seeds: bool = False,
    ) -> Callable[[], str] | None:
        """Return a function that draws a row of panels for each block; ``None`` without curves.

        Args:
            panels: The panels; those without a curve are left out.
            xlabel: Label of the x axis.
            name: Name of the figure.
            description: Text alternative of the figure.
            published: Curves of the paper by label, for an additional panel.
            seeds: Whether to draw the curves of the single seeds, too.
        """

        def has_curve(panel: Panel, block: BlockLines) -> bool:
            return any(line.curve(panel.points) for line in block.lines)

        panels = [
            panel for panel in panels if any(has_curve(panel, block) for block in self.blocks)
        ]
        blocks = [
            block for block in self.blocks if any(has_curve(panel, block) for panel in panels)
        ]
        if not blocks:
            return None
        return lambda: _draw(
            self, blocks, panels, xlabel, name, description, published or {}, seeds
        )


def read_curves(study: StudyRecord) -> Curves:
    """Read the run folders of the plotted rows.

    Of a block with many rows, the base and the rows that are best by the first metric are plotted.
    """
    run_records: dict[str, RunRecord | None] = {}
    faults: list[str] = []

    def read(trial: TrialRecord) -> RunRecord | None:
        try:
            run = read_run_record(trial.run_dir)
        except ValueError as error:
            faults.append(f"{error} Its curves are left out.")
            return None
        faults.extend(run.faults)
        last = max((row.step for row in run.rows if row.kind == "val"), default=0)
        if last < trial.step:
            faults.append(
                f"{run.path / METRICS} lacks rows: its last evaluation is that of step {last}, "
                f"not {trial.step}."
            )
        return run

    def line(row: PlannedRow) -> CurveLine:
        finished = [trial for trial in study.trials_of(row) if trial.counts]
        for trial in finished:
            if trial.key not in run_records:
                run_records[trial.key] = read(trial)
        return CurveLine(
            row, tuple(run for trial in finished if (run := run_records[trial.key]) is not None)
        )

    # The plotted rows of every block.
    blocks = []
    for index, block in enumerate(study.blocks[:MAX_BLOCKS]):
        rows = [row for row in study.rows if row.block == index and row.role != "a/a"]
        plotted_rows = _plotted_rows(study, rows)
        blocks.append(
            BlockLines(block.title, tuple(map(line, plotted_rows)), len(rows) - len(plotted_rows))
        )
    # The base and the A/A row, for the noise band.
    base_again = next(
        (row for row in study.rows if row.role == "a/a" and row.versus is not None), None
    )
    twins = None
    if base_again is not None and base_again.versus is not None:
        twins = (line(study.rows[base_again.versus]), line(base_again))
    return Curves(tuple(blocks), twins, tuple(faults))


def _plotted_rows(study: StudyRecord, rows: Sequence[PlannedRow]) -> list[PlannedRow]:
    metric = study.metrics[0]

    def rank(row: PlannedRow) -> tuple[bool, float]:
        values = list(values_by_replicate(study.trials_of(row), metric.key).values())
        mean = float(np.mean(values)) if values else -np.inf
        return row.role != "base", -mean if metric.higher_is_better or not values else mean

    return sorted(sorted(rows, key=rank)[:MAX_LINES], key=lambda row: row.number)


def _draw(
    curves: Curves,
    blocks: Sequence[BlockLines],
    columns: Sequence[Panel],
    xlabel: str,
    name: str,
    description: str,
    published: Mapping[str, Sequence[float]],
    seeds: bool,
) -> str:
    with rc_context(STYLE):
        num_panels = len(columns) + bool(published)
        # The page scales a wide figure down together with its text, so many panels are narrower.
        figure, panels = grid(len(blocks), num_panels, 4.6 if num_panels < MANY_PANELS else 3.4)
        for block, row_of_panels in zip(blocks, panels, strict=True):
            for axes, panel in zip(row_of_panels, columns, strict=False):
                _draw_band(axes, block, curves, panel)
                for number, line in enumerate(block.lines):
                    _draw_line(axes, line, number, panel, seeds)
                # The block's title is printed once, over the first panel: it may be wider than one.
                heading = f"{block.title}\n" if panel is columns[0] else "\n"
                axes.set(title=f"{heading if len(blocks) > 1 else ''}{panel.title}", xlabel=xlabel)
                if panel.ticks:
                    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            # One legend for each block: all its panels use the same colours.
            row_of_panels[0].legend(*_legend_entries(row_of_panels[: len(columns)]))
        if published:
            _draw_published(panels[0][-1], published, xlabel)
            for row_of_panels in panels[1:]:
                row_of_panels[-1].remove()
        return svg(figure, name, description)


def _legend_entries(panels: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Collect the legend entries of several panels.

    A line may have a curve in one of the panels only.
    """
    handles = {
        name: handle
        for axes in panels
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    return list(handles.values()), list(handles)


def _draw_published(axes: Axes, published: Mapping[str, Sequence[float]], xlabel: str) -> None:
    for number, (label, values) in enumerate(published.items()):
        places = range(1, len(values) + 1)
        axes.plot(places, values, marker=MARKERS[number], color=SERIES[-1 - number], label=label)
    axes.set(title="Paper, figure 2: ViT-B, VOC train", xlabel=xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


def _draw_line(axes: Axes, line: CurveLine, number: int, panel: Panel, seeds: bool) -> None:
    curve = line.curve(panel.points)
    if not curve:
        return
    colour = SERIES[number]
    if seeds:
        for run in line.runs:
            single = CurveLine(line.row, (run,)).curve(panel.points)
            axes.plot(
                list(single),
                [panel.scale * y[0] for y in single.values()],
                color=colour,
                lw=0.7,
                alpha=0.35,
            )
    axes.plot(
        list(curve),
        [panel.scale * float(np.mean(values)) for values in curve.values()],
        marker=MARKERS[number] if len(curve) <= 24 else None,
        ms=4,
        color=colour,
        label=line.row.label,
    )


def _draw_band(axes: Axes, block: BlockLines, curves: Curves, panel: Panel) -> None:
    """Draw the noise band: the noise floor of base and A/A row at each position."""
    base = next((line for line in block.lines if line.row.role == "base"), None)
    if base is None or curves.twins is None:
        return
    base_curve, base_again_curve = (twin.curve(panel.points) for twin in curves.twins)
    band = [
        (x, panel.scale * float(np.mean(values)), panel.scale * floor)
        for x, values in base.curve(panel.points).items()
        if x in base_curve
        and x in base_again_curve
        and (floor := noise_floor(base_curve[x], base_again_curve[x])) is not None
    ]
    if band:
        x, centre, floor = np.array(band).T
        axes.fill_between(
            x,
            centre - floor,
            centre + floor,
            color=MUTED,
            alpha=0.16,
            lw=0,
            label="noise band (A/A)",
        )
