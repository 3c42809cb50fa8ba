"""The curve over the rows: means with intervals and seeds; the paper's beside them, in a panel of its own scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from sweeps.core.design.study import PlannedRow
from sweeps.core.findings.analysis import StudyAnalysis
from sweeps.core.report.columns import TableMetric
from sweeps.core.report.drawing import MARKERS, MAX_BLOCKS, MAX_LINES, SERIES, STYLE, grid, label_rows, svg
from sweeps.core.report.section import Card, Section, Source
from sweeps.core.store.study_record import StudyRecord, values_by_replicate

MAX_ROWS = 40
"""Rows of a panel."""
_CAPTION = (
    "Points are means, bars 95 % t intervals, short strokes the seeds themselves; the band in a metric's colour is the "
    "noise floor around its base."
)
_PAPER_CAPTION = " The paper's curve has a panel and a scale of its own: compare the shapes, not the heights."


@dataclass(frozen=True, slots=True)
class _Block:
    title: str
    rows: tuple[PlannedRow, ...]
    is_published: bool


def _show(source: Source) -> Card | str:
    study, analysis = source.study, source.analysis
    metrics = [metric for metric in source.table.metrics if metric.percent][:MAX_LINES]
    if not metrics:
        return "no metric is a score in percent"
    blocks = []
    for index, block in enumerate(study.blocks[:MAX_BLOCKS]):
        rows = tuple(row for row in study.rows if row.block == index and row.role != "a/a")
        if 1 < len(rows) <= MAX_ROWS and any(_has_mean(analysis, row, metrics) for row in rows):
            blocks.append(_Block(block.title, rows, any(row.paper_row for row in rows)))
    if not blocks:
        return f"no block of 2 to {MAX_ROWS} rows has a finished trial"
    has_paper = any(block.published for block in source.table.blocks)
    return Card(_CAPTION + (_PAPER_CAPTION if has_paper else ""), lambda: _draw(study, analysis, metrics, blocks))


MEANS = Section("means", "The curve over the rows", _show)


def _draw(study: StudyRecord, analysis: StudyAnalysis, metrics: Sequence[TableMetric], blocks: Sequence[_Block]) -> str:
    wide = 1 + any(block.is_published for block in blocks)
    with rc_context(STYLE):
        figure, panels = grid(len(blocks), wide)
        for block, axes in zip(blocks, panels, strict=True):
            for number, metric in enumerate(metrics):
                _draw_means(axes[0], study, analysis, metric, block.rows, number, len(metrics))
            label_rows(axes[0], [row.label for row in block.rows])
            axes[0].set(title=f"{block.title}\n{study.recipe} on {study.data}", ylabel="mIoU (%)")
            if wide == 2 and not block.is_published:
                axes[1].remove()
            elif wide == 2:
                for number, metric in enumerate(metrics):
                    values = [
                        100 * published.metrics.get(metric.key, np.nan) if published else np.nan
                        for published in map(study.published, block.rows)
                    ]
                    if np.isfinite(values).any():
                        axes[1].plot(values, marker=MARKERS[number], color=SERIES[number], label=metric.title)
                label_rows(axes[1], [row.paper_row or "" for row in block.rows])
                axes[1].set(title="Paper, its own scale (one seed: no band)", ylabel="mIoU (%)")
        # One for all panels, and under them: lines over all of a panel's width leave no free corner.
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower left", ncols=len(metrics))
        return svg(figure, "means", "Metrics over the rows of the table, ours and the paper's")


def _has_mean(analysis: StudyAnalysis, row: PlannedRow, metrics: Sequence[TableMetric]) -> bool:
    return any(analysis.rows[row.number].figures[metric.key].summary for metric in metrics)


def _draw_means(
    axes: Axes,
    study: StudyRecord,
    analysis: StudyAnalysis,
    metric: TableMetric,
    rows: Sequence[PlannedRow],
    number: int,
    count: int,
) -> None:
    colour = SERIES[number]
    base = next((row for row in rows if row.role == "base"), rows[0])
    centre, floor = analysis.rows[base.number].figures[metric.key].summary, analysis.floors.get(metric.key)
    if centre is not None and floor is not None:
        axes.axhspan(100 * (centre.mean - floor), 100 * (centre.mean + floor), color=colour, alpha=0.12, lw=0)
    # Side by side, so that intervals of different metrics do not hide each other.
    positions = np.arange(len(rows)) + 0.12 * (number - (count - 1) / 2)
    summaries = [analysis.rows[row.number].figures[metric.key].summary for row in rows]
    axes.plot(
        positions,
        [100 * summary.mean if summary else np.nan for summary in summaries],
        marker=MARKERS[number],
        color=colour,
        label=metric.title,
    )
    for position, row, summary in zip(positions, rows, summaries, strict=True):
        if summary is not None and summary.low is not None and summary.high is not None:
            axes.plot([position] * 2, [100 * summary.low, 100 * summary.high], color=colour, lw=1.1)
        seeds = [100 * value for value in values_by_replicate(study.trials_of(row), metric.key).values()]
        axes.plot([position] * len(seeds), seeds, ls="", marker="_", ms=7, color=colour, alpha=0.55)
