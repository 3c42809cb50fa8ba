"""Table as Markdown, for a repository, a pull request or MLflow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from sweeps.core.report.table import LEGEND, StudyTable, claims_grid, differences_grid, rows_grid
from sweeps.core.report.text_grid import Mark, TextCell, TextGrid

_MARKS: dict[Mark, tuple[str, str]] = {
    "best": ("**", "**"),
    "strong": ("**", "**"),
    "second": ("<u>", "</u>"),
}


def markdown(
    table: StudyTable, grids: Iterable[TextGrid] = (), appendix: Iterable[TextGrid] = ()
) -> str:
    """Print the table with its verdict, claims, warnings and notes.

    Args:
        table: The study's table.
        grids: Tables of further analyses.
        appendix: Long tables, printed after the notes.
    """
    parts = [f"# {escaped(table.title)}", *([escaped(table.verdict)] if table.verdict else [])]
    for block in table.blocks:
        parts.append(pipe(rows_grid(table, block)))
        if block.comparisons:
            parts.append(pipe(differences_grid(table, block)))
    if table.claims:
        parts.append(pipe(claims_grid(table)))
    for grid in grids:
        parts += [
            escaped(grid.title) + ":",
            pipe(grid),
            *([_list(grid.notes)] if grid.notes else []),
        ]
    if table.warnings:
        parts.append(_list(table.warnings))
    parts.append(_list([LEGEND, *table.captions]))
    if table.footnotes:
        parts.append(
            _list([f"†{number} {text}" for number, text in enumerate(table.footnotes, start=1)])
        )
    if table.states:
        parts += ["Trials without a result:", _list(table.states)]
    for grid in appendix:
        parts += [f"## {escaped(grid.title)}", pipe(grid)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    r"""Escape ``text`` for Markdown and HTML.

    >>> print(escaped("a|b <c> 2*3"))
    a\|b \<c\> 2\*3
    """
    return re.sub(r"([\\|<>*`])", r"\\\1", text.replace("\n", " "))


def pipe(grid: TextGrid) -> str:
    """Print a table; columns from the first column of numbers on are right-aligned."""
    aligns = [column.align for column in grid.columns]
    num_left = aligns.index("right") if "right" in aligns else len(aligns)
    return tabulate(
        [[_cell(cell) for cell in line] for line in grid.lines],
        headers=[escaped(column.heading) for column in grid.columns],
        tablefmt="pipe",
        colalign=["left"] * num_left + ["right"] * (len(aligns) - num_left),
        disable_numparse=True,
    )


def _cell(cell: TextCell) -> str:
    before, after = _MARKS.get(cell.mark, ("", ""))
    return f"{before}{escaped(cell.full_text)}{after}"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)
