"""The report's curves as SVG that takes its colours and its font from the page, so that it follows light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sweeps.core.paper import FIGURE_2
from sweeps.core.report.study_record import CellRecord, MetricRecord, StudyRecord
from sweeps.core.report.table import paper_metrics, summarise

# Matplotlib knows no CSS: these stand in for the page's variables until the SVG is written.
_INK, _MUTED, _RULE = "#010101", "#020202", "#030303"
_SERIES = tuple(f"#0400{number:02x}" for number in range(8))
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _RULE: "--rule"} | {c: f"--series-{i}" for i, c in enumerate(_SERIES)}
_MARKERS = "osD^vP*X"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.7,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


def curve_over_rows(study: StudyRecord) -> str | None:
    """Every metric over the rows: ours with error bars and seeds, the paper's in a panel with a scale of its own."""
    shown = [metric for metric in study.metrics if metric.is_percent]
    if not any(cell.finished for cell in study.cells) or not shown:
        return None
    published = [metric for metric in paper_metrics(study) if metric.is_percent]
    with rc_context(_STYLE):
        figure, axes = _panels(2 if published else 1)
        positions = np.arange(len(study.cells))
        for number, metric in enumerate(shown):
            _draw_ours(axes[0], study.cells, metric, number, len(shown))
        _label_rows(axes[0], positions, [cell.label for cell in study.cells])
        axes[0].set(title=f"Ours: {study.recipe} on {study.data}", ylabel="mIoU (%)")
        axes[0].legend()
        if published:
            for number, metric in enumerate(shown):
                values = [100 * cell.paper.get(metric.key, np.nan) for cell in study.cells]
                axes[1].plot(positions, values, marker=_MARKERS[number], color=_SERIES[number], label=metric.title)
            _label_rows(axes[1], positions, [cell.paper_label or "" for cell in study.cells])
            axes[1].set(title="Paper: PASCAL VOC, its own scale", ylabel="mIoU (%)")
            axes[1].legend()
        return _svg(figure, "rows", "Metrics over the rows of the table, ours and the paper's")


def similarity_over_blocks(study: StudyRecord) -> str | None:
    """Patch similarity after every block, the mean over seeds of the last evaluation, beside the paper's figure 2."""
    curves: dict[str, list[list[float]]] = {}
    for cell in study.cells:
        for run in cell.finished:
            values = (run.last_evaluation or {}).get("patch_similarity") or []
            if values and None not in values:
                curves.setdefault(cell.label, []).append(values)
    if not curves:
        return None
    with rc_context(_STYLE):
        figure, axes = _panels(2)
        for number, (label, values) in enumerate(curves.items()):
            _draw_blocks(axes[0], np.mean(values, axis=0).tolist(), label, number)
        axes[0].set(title=f"Ours: {study.recipe} on {study.data}", ylabel="mean cosine similarity of patches")
        for number, (label, published) in enumerate(FIGURE_2.items()):
            _draw_blocks(axes[1], published, label, number)
        axes[1].set_title("Paper, figure 2: ViT-B, VOC train")
        for panel in axes:
            panel.set_xlabel("after block")
            panel.legend()
        return _svg(figure, "similarity", "Patch similarity after every block, ours and the paper's")


def training_curves(study: StudyRecord) -> str | None:
    """Every metric at every evaluation and the total loss, one colour a row, one line a seed."""
    keys = [(metric.key, metric.title, metric.is_percent) for metric in study.metrics]
    keys.append(("train/loss_total", "total training loss", False))
    if not any(run.rows for cell in study.cells for run in cell.finished):
        return None
    with rc_context(_STYLE):
        figure, axes = _panels(len(keys), columns=2)
        for panel, (key, title, is_percent) in zip(axes, keys, strict=True):
            for number, cell in enumerate(study.cells):
                for seed, run in enumerate(cell.finished):
                    points = [(row.step, row.values[key]) for row in run.rows if key in row.values]
                    x, y = np.array(points).reshape(-1, 2).T
                    panel.plot(
                        x,
                        100 * y if is_percent else y,
                        color=_SERIES[number % 8],
                        lw=1.1,
                        label=cell.label if seed == 0 else None,
                    )
            panel.set(title=f"{title} (%)" if is_percent else title, xlabel="step")
        axes[0].legend()
        return _svg(figure, "training", "Metrics and total loss over the steps of every training")


def _panels(count: int, columns: int = 2) -> tuple[Figure, list[Axes]]:
    rows = -(-count // columns)
    columns = min(columns, count)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows), layout="constrained")
    grid = np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel()
    for spare in grid[count:]:
        spare.remove()
    return figure, list(grid[:count])


def _draw_ours(axes: Axes, cells: Sequence[CellRecord], metric: MetricRecord, number: int, count: int) -> None:
    # Side by side, so that error bars of different metrics do not hide each other.
    positions = np.arange(len(cells)) + 0.12 * (number - (count - 1) / 2)
    summaries = [summarise(cell.metric(metric.key)) for cell in cells]
    means = [100 * summary.mean if summary else np.nan for summary in summaries]
    stds = [100 * (summary.std or 0.0) if summary else np.nan for summary in summaries]
    colour = _SERIES[number]
    axes.errorbar(positions, means, stds, marker=_MARKERS[number], color=colour, capsize=3, label=metric.title)
    for position, cell in zip(positions, cells, strict=True):
        values = [100 * value for value in cell.metric(metric.key)]
        axes.plot([position] * len(values), values, ls="", marker="_", ms=7, color=colour, alpha=0.55)


def _draw_blocks(axes: Axes, values: Sequence[float], label: str, number: int) -> None:
    blocks = range(1, len(values) + 1)
    axes.plot(blocks, values, marker=_MARKERS[number % 8], color=_SERIES[number % 8], label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _label_rows(axes: Axes, positions: Sequence[float] | np.ndarray, labels: Sequence[str]) -> None:
    axes.set_xticks(positions, labels, rotation=30 if max(map(len, labels)) > 12 else 0)
    axes.grid(visible=False, axis="x")


def _svg(figure: Figure, name: str, description: str) -> str:
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
        text.replace("<svg ", f'<svg role="img" aria-label="{description}" style="{size}" ', 1),
    )
