"""Report for a terminal of 120 columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tabulate import MIN_PADDING, tabulate

from sweeps.core.report.table import StudyTable, claims_grid, differences_grid, rows_grid
from sweeps.core.report.text_grid import Mark, TextCell, TextColumn, TextGrid

WIDTH = 120
"""Columns that a table fills at most, if its text can be wrapped.

A fixed number, so that the same study prints the same text in every terminal and log.
"""
MAX_ROWS = 200
"""Largest number of rows of a block that a terminal prints; the files have all rows.

A choice: a few screens, so that the lines above the table can still be reached.
"""
LEGEND = "* best, or not distinguishable from it; _ second."

_MIN_WIDTH = 8
"""A column is wrapped to at least this many characters, so that words stay readable."""
_GAP = 2
"""Number of spaces between two columns."""
_SIGNS: dict[Mark, str] = {"best": " *", "second": " _"}


def terminal(table: StudyTable, grids: Iterable[TextGrid] = ()) -> str:
    """Print the table with its verdict, warnings and captions.

    Args:
        table: Table of the study.
        grids: Tables of further analyses.
    """
    parts = [table.title]
    for block in table.blocks:
        short_block = replace(block, rows=block.rows[:MAX_ROWS])
        parts.append(plain(rows_grid(table, short_block)))
        if short_block.comparisons:
            parts.append(plain(differences_grid(table, short_block)))
        if len(block.rows) > MAX_ROWS:
            parts.append(f"{len(block.rows) - MAX_ROWS} more rows are in the files.")
    for grid in grids:
        parts += [f"{grid.title}\n{plain(grid)}", sentences(grid.notes)]
    if table.claims:
        parts.append(plain(claims_grid(table)))
    parts += [sentences([table.verdict]), sentences(table.warnings)]
    if table.states:
        parts.append(f"Trials without a result:\n{sentences(table.states, indent='  ')}")
    parts.append(
        sentences((f"†{number} {text}" for number, text in enumerate(table.footnotes, start=1)))
    )
    parts.append(sentences([LEGEND, *table.captions]))
    return "\n\n".join(filter(None, parts)) + "\n"


def plain(grid: TextGrid) -> str:
    """Print a table of at most ``WIDTH`` columns, if it can be wrapped so far.

    Marks are signs after the text, because logs and pipes have no bold type.
    """
    signed = [
        any(line[place].mark in _SIGNS for line in grid.lines) for place in range(len(grid.columns))
    ]
    lines = [
        [_text(cell, is_signed) for cell, is_signed in zip(line, signed, strict=True)]
        for line in grid.lines
    ]
    headings = [_heading(column) for column in grid.columns]
    if _total(_widths(headings, lines)) > WIDTH:
        headings = [
            _broken(heading, texts) for heading, *texts in zip(headings, *lines, strict=True)
        ]
    widths = _widths(headings, lines)
    limits = _wrap(widths, grid.columns)
    return tabulate(
        lines,
        headers=headings,
        tablefmt="simple",
        colalign=[column.align for column in grid.columns],
        disable_numparse=True,
        preserve_whitespace=True,
        maxcolwidths=[
            limit if limit < width else None for limit, width in zip(limits, widths, strict=True)
        ],
        maxheadercolwidths=[limit - MIN_PADDING for limit in limits],
        break_on_hyphens=False,
    )


def _wrap(widths: Sequence[int], columns: Iterable[TextColumn]) -> list[int]:
    """Compute the width of each column after wrapping.

    Columns are narrowed until the table fits, if that is possible.
    """
    limits = list(widths)
    wrapping = [place for place, column in enumerate(columns) if column.wraps]
    while _total(limits) > WIDTH:
        widest = max(wrapping, key=lambda place: limits[place], default=None)
        if widest is None or limits[widest] <= _MIN_WIDTH:
            break
        limits[widest] -= 1
    return limits


def _broken(heading: str, texts: Sequence[str]) -> str:
    """Break a heading into lines if it is wider than the texts below it."""
    if len(heading) + MIN_PADDING <= max(map(len, texts), default=0):
        return heading
    return re.sub(r" |(?<=[._])", "\n", heading)


def _widths(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[int]:
    """Compute the width of each column without wrapping."""
    return [
        max(_longest(heading) + MIN_PADDING, *map(_longest, texts), 0)
        for heading, *texts in zip(headings, *lines, strict=True)
    ]


def _longest(text: str) -> int:
    return max(map(len, text.split("\n")))


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _heading(column: TextColumn) -> str:
    """Return the heading, in two lines if its two levels say different things."""
    if not column.under or column.under == column.heading:
        return column.heading
    return f"{column.over}\n{column.under}"


def _text(cell: TextCell, is_signed: bool) -> str:
    return cell.full_text + (_SIGNS.get(cell.mark, "  ") if is_signed else "")


def sentences(texts: Iterable[str], indent: str = "") -> str:
    """Print sentences on lines of their own.

    Names of files are not broken, so that they can be copied.
    """
    wrapper = textwrap.TextWrapper(
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(filter(None, map(wrapper.fill, texts)))
