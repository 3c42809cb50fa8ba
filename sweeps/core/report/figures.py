"""The report's figures as SVG that takes its colours and its font from the page, so that it follows light and dark.

Every plot has the noise band: between the base and the base once more with other seeds (A/A) nothing differs, so a
difference inside the band is one that the seeds make by themselves.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sweeps.core.analysis import Analysis, Crossing
from sweeps.core.paper import FIGURE_2
from sweeps.core.report.table import Column, Table
from sweeps.core.statistics import noise_floor
from sweeps.core.study_record import RowRecord, StudyRecord
from toco.tracking import RunRecord

MAX_LINES = 8
"""Lines in a panel: as many as there are colours that can be told apart."""
MAX_BLOCKS = 6
MAX_ROWS = 40
"""Rows of the figure of differences."""
MANY_PANELS = 4
"""Panels beside each other from which on they are drawn narrower."""
MAX_CROSSINGS = 9
"""Panels of the figure of interactions."""

# Matplotlib knows no CSS: these stand in for the page's variables until the SVG is written.
INK, MUTED, _RULE, PAPER = "#010101", "#020202", "#030303", "#050505"
SERIES = tuple(f"#0400{number:02x}" for number in range(MAX_LINES))
_VARIABLES = {INK: "--ink", MUTED: "--muted", _RULE: "--rule", PAPER: "--paper"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES)
}
_MARKERS = "osD^vP*X"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    # Where no corner is free, a legend lies over lines, and has to be read there.
    "legend.facecolor": PAPER,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}

Curve = dict[float, list[float]]
"""Values of all seeds, by position."""


@dataclass(frozen=True, slots=True)
class Line:
    """A row with the run folders of its finished trials."""

    row: RowRecord
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
    """

    blocks: tuple[BlockLines, ...]
    twins: tuple[Line, Line] | None


Points = Callable[[RunRecord], Iterable[tuple[float, float | None]]]
"""Finds the points of a curve in a run."""


def read_lines(study: StudyRecord) -> Lines:
    """Run folders of the rows that curves show: of a block with many rows the base and the best by the first metric."""
    known: dict[str, RunRecord | None] = {}

    def line(row: RowRecord) -> Line:
        counted = [trial for trial in row.cell.trials if trial.counts]
        for trial in counted:
            if trial.key not in known:
                known[trial.key] = trial.run()
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
    return Lines(tuple(blocks), twins)


def _shown(study: StudyRecord, rows: Sequence[RowRecord]) -> list[RowRecord]:
    metric = study.metrics[0]

    def rank(row: RowRecord) -> tuple[bool, float]:
        values = list(row.cell.by_replicate(metric.key).values())
        mean = float(np.mean(values)) if values else -np.inf
        return row.role != "base", -mean if metric.higher_is_better or not values else mean

    return sorted(sorted(rows, key=rank)[:MAX_LINES], key=lambda row: row.number)


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


def _size(analysis: Analysis, row: RowRecord, key: str) -> float:
    paired = analysis.rows[row.number].figures[key].paired
    return abs(paired.difference) if paired else 0.0


def _places(study: StudyRecord, rows: Sequence[RowRecord]) -> tuple[dict[int, int], list[str], set[int]]:
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
    rows: Sequence[RowRecord],
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


def _published_difference(study: StudyRecord, row: RowRecord, key: str) -> float | None:
    base = study.rows[row.versus].paper if row.versus is not None else None
    if row.paper is None or base is None or key not in row.paper.metrics or key not in base.metrics:
        return None
    return row.paper.metrics[key] - base.metrics[key]


def means(study: StudyRecord, analysis: Analysis, table: Table) -> str | None:
    """Means over the rows with t intervals and seeds, block by block; the paper's in a panel of its own scale."""
    columns = [column for column in table.columns if column.percent][:MAX_LINES]
    blocks = []
    for index, block in enumerate(study.blocks[:MAX_BLOCKS]):
        rows = [row for row in study.rows if row.block == index and row.role != "a/a"]
        if 1 < len(rows) <= MAX_ROWS and any(_has_mean(analysis, row, columns) for row in rows):
            blocks.append((block.title, rows, any(row.paper for row in rows)))
    if not blocks or not columns:
        return None
    wide = 1 + any(published for _, _, published in blocks)
    with rc_context(STYLE):
        figure, panels = _grid(len(blocks), wide)
        for (title, rows, published), axes in zip(blocks, panels, strict=True):
            for number, column in enumerate(columns):
                _draw_means(axes[0], analysis, column, rows, number, len(columns))
            _label_rows(axes[0], [row.label for row in rows])
            axes[0].set(title=f"{title}\n{study.recipe} on {study.data}", ylabel="mIoU (%)")
            if wide == 2 and not published:
                axes[1].remove()
            elif wide == 2:
                for number, column in enumerate(columns):
                    values = [100 * row.paper.metrics.get(column.key, np.nan) if row.paper else np.nan for row in rows]
                    if np.isfinite(values).any():
                        axes[1].plot(values, marker=_MARKERS[number], color=SERIES[number], label=column.title)
                _label_rows(axes[1], [row.paper.label if row.paper else "" for row in rows])
                axes[1].set(title="Paper, its own scale (one seed: no band)", ylabel="mIoU (%)")
        # One for all panels, and under them: lines over all of a panel's width leave no free corner.
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower left", ncols=len(columns))
        return svg(figure, "means", "Metrics over the rows of the table, ours and the paper's")


def _has_mean(analysis: Analysis, row: RowRecord, columns: Sequence[Column]) -> bool:
    return any(analysis.rows[row.number].figures[column.key].summary for column in columns)


def _draw_means(
    axes: Axes, analysis: Analysis, column: Column, rows: Sequence[RowRecord], number: int, count: int
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
        marker=_MARKERS[number],
        color=colour,
        label=column.title,
    )
    for position, row, summary in zip(positions, rows, summaries, strict=True):
        if summary is not None and summary.low is not None and summary.high is not None:
            axes.plot([position] * 2, [100 * summary.low, 100 * summary.high], color=colour, lw=1.1)
        seeds = [100 * value for value in row.cell.by_replicate(column.key).values()]
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
        figure, panels = _grid(-(-len(found) // columns), columns)
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
        axes.plot(values, marker=_MARKERS[number], color=SERIES[number], label=line)
        if floor is not None and number == 0:
            # Around the first line: another one inside the band is not told apart from it there.
            low, high = (np.array(values) + sign * 100 * floor for sign in (-1, 1))
            axes.fill_between(range(len(levels)), low, high, color=MUTED, alpha=0.16, lw=0, label="noise band (A/A)")
    _label_rows(axes, levels)


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
        figure, panels = _grid(len(blocks), num_panels, 4.6 if num_panels < MANY_PANELS else 3.4)
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
        axes.plot(places, values, marker=_MARKERS[number], color=SERIES[-1 - number], label=label)
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
        marker=_MARKERS[number] if len(curve) <= 24 else None,
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


def _grid(rows: int, columns: int, width: float = 4.6) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(width * columns, 3.1 * rows), layout="constrained")
    panels: list[list[Axes]] = figure.subplots(rows, columns, squeeze=False).tolist()
    return figure, panels


def _label_rows(axes: Axes, labels: Sequence[str]) -> None:
    if max(map(len, labels)) > 12 or len(labels) > 8:
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(range(len(labels)), labels)
    axes.grid(visible=False, axis="x")


def svg(figure: Figure, name: str, description: str) -> str:
    """``figure`` as an SVG element for a page; ``name`` keeps its ids apart from those of other figures."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"(font: (?:\w+ )?[\d.]+px) [^;\"]*", r"\1 var(--sans)", text)
    width = re.search(r'width="([\d.]+)pt"', text)
    size = f"max-width: {float(width[1]) * 1.35:.0f}px" if width else ""
    return re.sub(
        r'width="[\d.]+pt" height="[\d.]+pt"|height="[\d.]+pt"|width="[\d.]+pt"',
        "",
        text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" style="{size}" ', 1),
    )
