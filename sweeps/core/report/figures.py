"""The report's figures of what the analysis found: differences, means, interactions.

Each has the noise band: between the base and the base once more with other seeds (A/A) nothing differs, so a
difference inside the band is one that the seeds make by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.core.design.study import PlannedRow
from sweeps.core.findings.analysis import Analysis, Crossing
from sweeps.core.report.drawing import (
    INK,
    MARKERS,
    MAX_BLOCKS,
    MAX_LINES,
    MUTED,
    PAPER,
    SERIES,
    STYLE,
    grid,
    label_rows,
    svg,
)
from sweeps.core.report.table import Column, Table
from sweeps.core.store.study_record import StudyRecord, values_by_replicate

MAX_ROWS = 40
"""Rows of the figure of differences."""
MAX_CROSSINGS = 9
"""Panels of the figure of interactions."""


def differences(study: StudyRecord, analysis: Analysis, table: Table) -> str | None:
    """Every declared comparison: the paired difference with its interval, the one over images, the paper's."""
    keys = [column for column in table.columns if any(column.key in block.metrics for block in study.blocks)]
    rows = [
        row
        for row in study.rows
        if row.versus is not None and any(analysis.rows[row.number].figures[c.key].paired for c in keys)
    ]
    if not rows or not keys:
        return None
    first = keys[0].key
    if len(rows) > MAX_ROWS:
        sizes = {row.number: _size(analysis, row, first) for row in rows}
        kept = set(sorted(sizes, key=sizes.__getitem__, reverse=True)[:MAX_ROWS])
        rows = [row for row in rows if row.number in kept or row.role == "a/a"]
    places, labels, headings = _places(study, rows)
    with rc_context(STYLE):
        figure = Figure(figsize=(1.6 + 3.1 * len(keys), 0.9 + 0.27 * len(labels)), layout="constrained")
        panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
        for axes, column in zip(panels, keys, strict=True):
            _draw_differences(axes, study, analysis, column, rows, places)
            axes.set(title=column.title, xlabel="difference (points)" if column.percent else "difference")
            axes.set_yticks(range(len(labels)), labels)
            axes.tick_params(axis="y", length=0)
            axes.grid(visible=False, axis="y")
            for place, text in enumerate(axes.get_yticklabels()):
                text.set_fontweight("bold" if place in headings else "normal")
                text.set_color(INK)
            axes.set_ylim(len(labels) - 0.4, -0.6)
        handles, names = panels[0].get_legend_handles_labels()
        # A legend that is wider than the figure is cut off, and its lines take their height from the panels.
        columns = min(2 * len(keys), 5)
        figure.legend(handles, names, loc="outside lower left", ncols=columns, columnspacing=1.4)
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(handles) // columns))
        return svg(figure, "differences", "Differences with their intervals, over the noise band")


def _size(analysis: Analysis, row: PlannedRow, key: str) -> float:
    paired = analysis.rows[row.number].figures[key].paired
    return abs(paired.difference) if paired else 0.0


def _places(study: StudyRecord, rows: Sequence[PlannedRow]) -> tuple[dict[int, int], list[str], set[int]]:
    """Place of every row from the top, and the labels, where the block's headings stand between the rows."""
    places: dict[int, int] = {}
    labels: list[str] = []
    headings: set[int] = set()
    several = len({row.block for row in rows}) > 1
    # The A/A row belongs to the whole study: last, without a heading.
    for row in sorted(rows, key=lambda row: (row.role == "a/a", row.block, row.number)):
        heading = study.blocks[row.block].title
        if several and row.role != "a/a" and (not labels or heading not in {labels[place] for place in headings}):
            headings.add(len(labels))
            labels.append(heading)
        places[row.number] = len(labels)
        labels.append(row.label)
    return places, labels, headings


def _draw_differences(
    axes: Axes,
    study: StudyRecord,
    analysis: Analysis,
    column: Column,
    rows: Sequence[PlannedRow],
    places: Mapping[int, int],
) -> None:
    scale = 100 if column.percent else 1
    floor = analysis.floors.get(column.key)
    if floor is not None:
        axes.axvspan(-scale * floor, scale * floor, color=MUTED, alpha=0.16, lw=0, label="noise band (A/A)")
    axes.axvline(0, color=MUTED, lw=0.9)
    shown: set[str] = set()

    def once(name: str) -> str | None:
        return None if name in shown or shown.add(name) else name  # type: ignore[func-returns-value]

    for row in rows:
        figures, y = analysis.rows[row.number].figures[column.key], places[row.number]
        paired, images = figures.paired, figures.images
        if paired is not None:
            if paired.low is not None and paired.high is not None:
                axes.plot(
                    [scale * paired.low, scale * paired.high],
                    [y, y],
                    color=SERIES[0],
                    lw=2.2,
                    label=once("95 % over seeds"),
                )
            axes.plot(
                scale * paired.difference,
                y,
                "o",
                color=SERIES[0],
                mfc=SERIES[0] if figures.significant else PAPER,
                alpha=1 if figures.declared else 0.6,
                label=once("significant (Holm)" if figures.significant else "not significant"),
            )
        if images is not None:
            axes.plot(
                [scale * images.low, scale * images.high],
                [y + 0.28, y + 0.28],
                color=SERIES[2],
                lw=1.1,
                label=once("95 % over images"),
            )
        published = _published_difference(study, row, column.key)
        if published is not None:
            axes.plot(scale * published, y - 0.24, "D", ms=4, color=SERIES[1], mfc="none", label=once("paper"))


def _published_difference(study: StudyRecord, row: PlannedRow, key: str) -> float | None:
    base = study.published(study.rows[row.versus]) if row.versus is not None else None
    paper_row = study.published(row)
    if paper_row is None or base is None or key not in paper_row.metrics or key not in base.metrics:
        return None
    return paper_row.metrics[key] - base.metrics[key]


def means(study: StudyRecord, analysis: Analysis, table: Table) -> str | None:
    """Means over the rows with t intervals and seeds, block by block; the paper's in a panel of its own scale."""
    columns = [column for column in table.columns if column.percent][:MAX_LINES]
    blocks = []
    for index, block in enumerate(study.blocks[:MAX_BLOCKS]):
        rows = [row for row in study.rows if row.block == index and row.role != "a/a"]
        if 1 < len(rows) <= MAX_ROWS and any(_has_mean(analysis, row, columns) for row in rows):
            blocks.append((block.title, rows, any(row.paper_row for row in rows)))
    if not blocks or not columns:
        return None
    wide = 1 + any(published for _, _, published in blocks)
    with rc_context(STYLE):
        figure, panels = grid(len(blocks), wide)
        for (title, rows, published), axes in zip(blocks, panels, strict=True):
            for number, column in enumerate(columns):
                _draw_means(axes[0], study, analysis, column, rows, number, len(columns))
            label_rows(axes[0], [row.label for row in rows])
            axes[0].set(title=f"{title}\n{study.recipe} on {study.data}", ylabel="mIoU (%)")
            if wide == 2 and not published:
                axes[1].remove()
            elif wide == 2:
                for number, column in enumerate(columns):
                    values = [
                        100 * paper_row.metrics.get(column.key, np.nan) if paper_row else np.nan
                        for paper_row in map(study.published, rows)
                    ]
                    if np.isfinite(values).any():
                        axes[1].plot(values, marker=MARKERS[number], color=SERIES[number], label=column.title)
                label_rows(axes[1], [row.paper_row or "" for row in rows])
                axes[1].set(title="Paper, its own scale (one seed: no band)", ylabel="mIoU (%)")
        # One for all panels, and under them: lines over all of a panel's width leave no free corner.
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower left", ncols=len(columns))
        return svg(figure, "means", "Metrics over the rows of the table, ours and the paper's")


def _has_mean(analysis: Analysis, row: PlannedRow, columns: Sequence[Column]) -> bool:
    return any(analysis.rows[row.number].figures[column.key].summary for column in columns)


def _draw_means(
    axes: Axes,
    study: StudyRecord,
    analysis: Analysis,
    column: Column,
    rows: Sequence[PlannedRow],
    number: int,
    count: int,
) -> None:
    colour = SERIES[number]
    base = next((row for row in rows if row.role == "base"), rows[0])
    centre, floor = analysis.rows[base.number].figures[column.key].summary, analysis.floors.get(column.key)
    if centre is not None and floor is not None:
        axes.axhspan(100 * (centre.mean - floor), 100 * (centre.mean + floor), color=colour, alpha=0.12, lw=0)
    # Side by side, so that intervals of different metrics do not hide each other.
    positions = np.arange(len(rows)) + 0.12 * (number - (count - 1) / 2)
    summaries = [analysis.rows[row.number].figures[column.key].summary for row in rows]
    axes.plot(
        positions,
        [100 * summary.mean if summary else np.nan for summary in summaries],
        marker=MARKERS[number],
        color=colour,
        label=column.title,
    )
    for position, row, summary in zip(positions, rows, summaries, strict=True):
        if summary is not None and summary.low is not None and summary.high is not None:
            axes.plot([position] * 2, [100 * summary.low, 100 * summary.high], color=colour, lw=1.1)
        seeds = [100 * value for value in values_by_replicate(study.trials_of(row), column.key).values()]
        axes.plot([position] * len(seeds), seeds, ls="", marker="_", ms=7, color=colour, alpha=0.55)


def interactions(analysis: Analysis, table: Table) -> str | None:
    """Means over the levels of a factor, one line for each level of another that was varied with it."""
    percent = {column.key: column for column in table.columns if column.percent}
    found: list[tuple[Crossing, tuple[str, str]]] = []
    for crossing in analysis.crossings:
        pairs = dict.fromkeys((mean.factor, mean.other) for mean in crossing.means if mean.other is not None)
        order = crossing.factors.index
        if crossing.metric in percent:
            found += [(crossing, (one, other)) for one, other in pairs if other and order(one) < order(other)]
    found = found[:MAX_CROSSINGS]
    if not found:
        return None
    columns = 3 if len(found) > 2 else len(found)
    with rc_context(STYLE):
        figure, panels = grid(-(-len(found) // columns), columns)
        flat = [axes for row in panels for axes in row]
        for spare in flat[len(found) :]:
            spare.remove()
        for axes, (crossing, (factor, other)) in zip(flat, found, strict=False):
            column = percent[crossing.metric]
            _draw_interaction(axes, crossing, factor, other, analysis.floors.get(column.key))
            name, lines = factor.rpartition(".")[2], other.rpartition(".")[2]
            axes.set(title=f"{column.title}: {name} and {lines}", xlabel=name, ylabel="mIoU (%)")
            axes.legend(title=lines)
        return svg(figure, "interactions", "Means by two factors: lines that are not parallel show an interaction")


def _draw_interaction(axes: Axes, crossing: Crossing, factor: str, other: str, floor: float | None) -> None:
    means = {
        (str(mean.level), str(mean.other_level)): 100 * mean.mean
        for mean in crossing.means
        if mean.factor == factor and mean.other == other
    }
    levels, lines = (list(dict.fromkeys(pair[number] for pair in means)) for number in (0, 1))
    for number, line in enumerate(lines[:MAX_LINES]):
        values = [means.get((level, line), np.nan) for level in levels]
        axes.plot(values, marker=MARKERS[number], color=SERIES[number], label=line)
        if floor is not None and number == 0:
            # Around the first line: another one inside the band is not told apart from it there.
            low, high = (np.array(values) + sign * 100 * floor for sign in (-1, 1))
            axes.fill_between(range(len(levels)), low, high, color=MUTED, alpha=0.16, lw=0, label="noise band (A/A)")
    label_rows(axes, levels)
