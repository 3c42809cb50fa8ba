"""Figure of all comparisons, with intervals over seeds and over images.

The paper's differences are drawn, too. The noise band lies around zero. Only the seeds differ
between the base and the A/A row, so a difference inside the band can be caused by seeds alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.core.design.study import Metric, PlannedRow
from sweeps.core.findings.analysis import StudyAnalysis
from sweeps.core.report.drawing import INK, MUTED, PAPER, SERIES, STYLE, svg
from sweeps.core.report.section import Card, Section, Source
from sweeps.core.report.table import differences_grid
from sweeps.core.store.study_record import StudyRecord

MAX_ROWS = 40
"""Largest number of rows in the figure, which is then about 1,100 px high: a screen."""
MAX_LINES = 200
"""With more rows, only ``table.csv`` has the differences as numbers."""
_CAPTION = (
    "Points are mean differences to the base, or to the row that the table names, paired by seed, "
    "filled where they are significant after Holm's correction; thick bars their 95 % intervals "
    "over seeds, thin bars the interval over test images, another noise that no test uses. "
    "Diamonds are the paper's differences. The grey band is the noise floor: the "
    "difference between the base and the base again (A/A) that seeds alone can cause."
)


_SEQUENTIAL_CAPTION = (
    " Of comparisons in claims, the thick bars are repeated intervals of the last look, which "
    "cover at all looks together. Of the others, and in the noise floor, they are over the seeds "
    "that all rows have."
)


def _show(source: Source) -> Card | str:
    study, analysis, table = source.study, source.analysis, source.table
    metrics = [
        metric
        for metric in table.metrics
        if any(metric.key in block.metrics for block in study.blocks)
    ]
    if not metrics:
        return "the study declares no comparison"
    rows = [
        row
        for row in study.rows
        if row.versus is not None
        and any(analysis.rows[row.number].figures[m.key].paired for m in metrics)
    ]
    if not rows:
        return "no row and its base have finished trials of the same seed"
    grids = [
        replace(differences_grid(table, b), title=f"{b.title}: the differences as numbers")
        for b in table.blocks
    ]
    return Card(
        _CAPTION + (_SEQUENTIAL_CAPTION if study.sequential is not None else ""),
        lambda: _draw(study, analysis, metrics, rows),
        tuple(grid for grid in grids if grid.lines) if len(study.rows) <= MAX_LINES else (),
    )


DIFFERENCES = Section("differences", "Differences", _show)


def _draw(
    study: StudyRecord, analysis: StudyAnalysis, metrics: Sequence[Metric], rows: list[PlannedRow]
) -> str:
    if len(rows) > MAX_ROWS:
        paired = {
            row.number: analysis.rows[row.number].figures[metrics[0].key].paired for row in rows
        }
        sizes = {number: abs(test.difference) if test else 0.0 for number, test in paired.items()}
        largest = set(sorted(sizes, key=sizes.__getitem__, reverse=True)[:MAX_ROWS])
        rows = [row for row in rows if row.number in largest or row.role == "a/a"]
    places, labels, headings = _places(study, rows)
    with rc_context(STYLE):
        figure = Figure(
            figsize=(1.6 + 3.1 * len(metrics), 0.9 + 0.27 * len(labels)), layout="constrained"
        )
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            _draw_panel(axes, study, analysis, metric, rows, places)
            axes.set(
                title=metric.title, xlabel="difference (points)" if metric.percent else "difference"
            )
            axes.set_yticks(range(len(labels)), labels)
            axes.tick_params(axis="y", length=0)
            axes.grid(visible=False, axis="y")
            for place, text in enumerate(axes.get_yticklabels()):
                text.set_fontweight("bold" if place in headings else "normal")
                text.set_color(INK)
            axes.set_ylim(len(labels) - 0.4, -0.6)
        handles, names = panels[0].get_legend_handles_labels()
        # A legend wider than the figure would be cut off, so it has several lines. They would take
        # their height from the panels, so the figure grows.
        columns = min(2 * len(metrics), 5)
        figure.legend(handles, names, loc="outside lower left", ncols=columns, columnspacing=1.4)
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(handles) // columns))
        return svg(figure, "differences", "Differences with their intervals, over the noise band")


def _places(
    study: StudyRecord, rows: Sequence[PlannedRow]
) -> tuple[dict[int, int], list[str], set[int]]:
    """Compute the position of every row from the top, and the labels.

    Headings of the blocks are labels between the rows; the third result holds their positions.
    """
    places: dict[int, int] = {}
    labels: list[str] = []
    headings: set[int] = set()
    several = len({row.block for row in rows}) > 1
    # The A/A row belongs to the study as a whole: it is the last row and has no heading.
    for row in sorted(rows, key=lambda row: (row.role == "a/a", row.block, row.number)):
        heading = study.blocks[row.block].title
        if (
            several
            and row.role != "a/a"
            and (not labels or heading not in {labels[place] for place in headings})
        ):
            headings.add(len(labels))
            labels.append(heading)
        places[row.number] = len(labels)
        labels.append(row.label)
    return places, labels, headings


def _draw_panel(
    axes: Axes,
    study: StudyRecord,
    analysis: StudyAnalysis,
    metric: Metric,
    rows: Sequence[PlannedRow],
    places: Mapping[int, int],
) -> None:
    # The noise band and the line of no difference.
    scale = 100 if metric.percent else 1
    floor = analysis.floors.get(metric.key)
    if floor is not None:
        axes.axvspan(
            -scale * floor, scale * floor, color=MUTED, alpha=0.16, lw=0, label="noise band (A/A)"
        )
    axes.axvline(0, color=MUTED, lw=0.9)
    legend_names: set[str] = set()

    def once(name: str) -> str | None:
        """Return the name for the first line with it, so that the legend has it once."""
        if name in legend_names:
            return None
        legend_names.add(name)
        return name

    # Each row: the interval over seeds and the difference on it, the interval over images below,
    # the paper's difference above.
    for row in rows:
        figures, y = analysis.rows[row.number].figures[metric.key], places[row.number]
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
        published = _published_difference(study, row, metric.key)
        if published is not None:
            axes.plot(
                scale * published,
                y - 0.24,
                "D",
                ms=4,
                color=SERIES[1],
                mfc="none",
                label=once("paper"),
            )


def _published_difference(study: StudyRecord, row: PlannedRow, key: str) -> float | None:
    published = study.published(row)
    base = study.published(study.rows[row.versus]) if row.versus is not None else None
    if published is None or base is None or key not in published.metrics or key not in base.metrics:
        return None
    return published.metrics[key] - base.metrics[key]
