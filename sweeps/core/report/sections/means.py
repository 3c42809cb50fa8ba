"""Curve over the rows: means with intervals and seeds, beside the paper's curve.

The paper's curve has a panel with its own scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from sweeps.core.design.study import Metric, PlannedRow
from sweeps.core.findings.analysis import StudyAnalysis
from sweeps.core.report.drawing import (
    MARKERS,
    MAX_BLOCKS,
    MAX_LINES,
    SERIES,
    STYLE,
    grid,
    label_rows,
    svg,
)
from sweeps.core.report.section import Card, Section, Source
from sweeps.core.store.study_record import StudyRecord, values_by_replicate

MAX_ROWS = 40
"""Largest number of rows in a panel: the labels of more rows are not readable."""
_CAPTION = (
    "Points are means, bars 95 % t intervals, short strokes single seeds; "
    "the band in a metric's colour is the noise floor around its base, or around its first "
    "row where there is no base."
)
_PAPER_CAPTION = (
    " The paper's curve has its own panel and scale: compare the shapes, not the heights."
)


_SEQUENTIAL_CAPTION = (
    " Rows get seeds while their claims are open, so their numbers of seeds differ. The bands use "
    "the seeds that all rows have."
)


def _show(source: Source) -> Card | str:
    study, analysis = source.study, source.analysis
    percent = [metric for metric in source.table.metrics if metric.percent]
    metrics = percent[:MAX_LINES]
    if not metrics:
        return "no metric is a score in percent"
    blocks = {}
    for number, block in enumerate(study.blocks[:MAX_BLOCKS]):
        rows = [row for row in study.rows if row.block == number and row.role != "a/a"]
        figures = [
            analysis.rows[row.number].figures[metric.key] for row in rows for metric in metrics
        ]
        if 1 < len(rows) <= MAX_ROWS and any(entry.summary for entry in figures):
            blocks[block.title] = rows
    if not blocks:
        return f"no block of 2 to {MAX_ROWS} rows has a finished trial"
    has_paper = any(row.paper_row for rows in blocks.values() for row in rows)
    return Card(
        _CAPTION
        + (_PAPER_CAPTION if has_paper else "")
        + (_SEQUENTIAL_CAPTION if study.sequential is not None else ""),
        lambda: _draw(study, analysis, metrics, blocks, has_paper=has_paper),
        notes=_notes(study, percent),
    )


def _notes(study: StudyRecord, percent: Sequence[Metric]) -> tuple[str, ...]:
    """Name the blocks and metrics that are left out because they are too many or too large."""
    left_out = [block.title for block in study.blocks[MAX_BLOCKS:]]
    large = [
        block.title
        for number, block in enumerate(study.blocks[:MAX_BLOCKS])
        if sum(row.block == number and row.role != "a/a" for row in study.rows) > MAX_ROWS
    ]
    notes = []
    if left_out:
        notes.append(
            f"Only the first {MAX_BLOCKS} blocks are drawn, without {', '.join(left_out)}."
        )
    if large:
        notes.append(f"Blocks of more than {MAX_ROWS} rows are not drawn: {', '.join(large)}.")
    if len(percent) > MAX_LINES:
        titles = ", ".join(metric.title for metric in percent[MAX_LINES:])
        notes.append(f"Only the first {MAX_LINES} metrics are drawn, without {titles}.")
    return tuple(notes)


MEANS = Section("means", "The curve over the rows", _show)


def _draw(
    study: StudyRecord,
    analysis: StudyAnalysis,
    metrics: Sequence[Metric],
    blocks: Mapping[str, Sequence[PlannedRow]],
    *,
    has_paper: bool,
) -> str:
    ylabel = _ylabel(metrics)
    with rc_context(STYLE):
        figure, panels = grid(len(blocks), 2 if has_paper else 1)
        for (title, rows), axes in zip(blocks.items(), panels, strict=True):
            for number, metric in enumerate(metrics):
                _draw_means(axes[0], study, analysis, metric, rows, number, len(metrics))
            label_rows(axes[0], [row.label for row in rows])
            setting = study.source or f"{study.recipe} on {study.data}"
            axes[0].set(title=f"{title}\n{setting}", ylabel=ylabel)
            if any(row.paper_row for row in rows):
                _draw_published(axes[1], study, metrics, rows)
            elif has_paper:
                axes[1].remove()
        # One legend for all panels, below them: lines that cross the panel leave no free corner.
        figure.legend(
            *panels[0][0].get_legend_handles_labels(), loc="outside lower left", ncols=len(metrics)
        )
        return svg(
            figure,
            "means",
            "Means of the metrics over the rows of the table"
            + (", and the paper's values" if has_paper else ""),
        )


def _ylabel(metrics: Sequence[Metric]) -> str:
    is_miou = all(metric.key.endswith("_miou") for metric in metrics)
    return "mIoU (%)" if is_miou else "score (%)"


def _draw_published(
    axes: Axes, study: StudyRecord, metrics: Sequence[Metric], rows: Sequence[PlannedRow]
) -> None:
    for number, metric in enumerate(metrics):
        published = [paper.metrics if paper else {} for paper in map(study.published, rows)]
        values = [100 * of_row.get(metric.key, np.nan) for of_row in published]
        if np.isfinite(values).any():
            axes.plot(values, marker=MARKERS[number], color=SERIES[number], label=metric.title)
    label_rows(axes, [row.paper_row or "" for row in rows])
    axes.set(title="Paper, its own scale (one seed: no band)", ylabel=_ylabel(metrics))


def _draw_means(
    axes: Axes,
    study: StudyRecord,
    analysis: StudyAnalysis,
    metric: Metric,
    rows: Sequence[PlannedRow],
    number: int,
    count: int,
) -> None:
    colour = SERIES[number]
    base = next((row for row in rows if row.role == "base"), rows[0])
    centre, floor = (
        analysis.rows[base.number].figures[metric.key].summary,
        analysis.floors.get(metric.key),
    )
    if centre is not None and floor is not None:
        axes.axhspan(
            100 * (centre.mean - floor), 100 * (centre.mean + floor), color=colour, alpha=0.12, lw=0
        )
    # 0.12 of the distance of two rows: eight metrics fill less than this distance. Metrics are
    # shifted, so that their intervals do not hide each other.
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
        seeds = [
            100 * value for value in values_by_replicate(study.trials_of(row), metric.key).values()
        ]
        axes.plot([position] * len(seeds), seeds, ls="", marker="_", ms=7, color=colour, alpha=0.55)
