"""Style of the report's figures: SVG that takes colours and font from the page.

A figure therefore follows the page's light and dark mode.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from toco.evaluate.pictures import without_glyph_warnings

MAX_LINES = 8
"""Largest number of lines in a panel: the number of distinguishable colours and of ``MARKERS``."""
MAX_BLOCKS = 6
"""Largest number of blocks of a study that have panels.

Six panels of 3.1 inches are 1,800 px high, about two screens of a page.
"""

# Matplotlib knows no CSS. These colours are placeholders, which svg() replaces by CSS variables.
INK, MUTED, _RULE, PAPER = "#010101", "#020202", "#030303", "#050505"
SERIES = tuple(f"#0400{number:02x}" for number in range(MAX_LINES))
_VARIABLES = {INK: "--ink", MUTED: "--muted", _RULE: "--rule", PAPER: "--paper"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES)
}
MARKERS = "osD^vP*X"

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
    # A legend may cover lines if no corner is free; its background keeps it readable.
    "legend.facecolor": PAPER,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


def grid(rows: int, columns: int, width: float = 4.6) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure with panels, row by row.

    A panel is ``width`` inches wide and 3.1 inches high.
    """
    figure = Figure(figsize=(width * columns, 3.1 * rows), layout="constrained")
    panels: list[list[Axes]] = figure.subplots(rows, columns, squeeze=False).tolist()
    return figure, panels


def label_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Write ``labels`` at the positions 0, 1, ...; slanted if they are long or many."""
    if max(map(len, labels)) > 12 or len(labels) > 8:
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(range(len(labels)), labels)
    axes.grid(visible=False, axis="x")


def svg(figure: Figure, name: str, description: str) -> str:
    """Convert a figure to an SVG element of a page.

    Args:
        figure: The figure.
        name: Name that makes the ids of the SVG unique in the page.
        description: Text alternative of the figure.
    """
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}), without_glyph_warnings():
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
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
        text.replace(
            "<svg ", f'<svg role="img" aria-label="{html.escape(description)}" style="{size}" ', 1
        ),
    )
