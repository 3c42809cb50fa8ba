"""The table for a terminal of 120 columns."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from sweeps.core.report.table import (
    DIFFERENCE_HEADINGS,
    TERM_HEADINGS,
    Mark,
    Table,
    TableBlock,
    TermsTable,
    difference_texts,
)

WIDTH = 120
MAX_ROWS = 200
"""More rows of a block than a person scrolls through are left to the files."""

_STYLES: dict[Mark, str] = {"bold": "bold", "underlined": "underline", "": ""}
_SIGNS: dict[Mark, str] = {"bold": "*", "underlined": "_", "": " "}
LEGEND = "* best, or not distinguishable from it (bold); _ second (underlined)"


def terminal(table: Table, *, width: int = WIDTH, styled: bool = False) -> str:
    """The table with all it says, ``width`` columns wide; ``styled`` adds bold and underlined letters.

    A sign stands beside every mark, too, since logs and pipes have no bold.
    """
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=width,
        force_terminal=styled,
        color_system="standard" if styled else None,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(Text(table.title, "bold"))
    for block in table.blocks:
        console.print()
        console.print(Text(block.title, "bold"))
        console.print(_rows(block, table))
        if block.differences:
            console.print()
            console.print(_differences(block))
        hidden = len(block.rows) - MAX_ROWS
        if hidden > 0:
            console.print(f"{hidden} more rows are in the files.")
    for terms in table.terms:
        console.print()
        console.print(Text(terms.title, "bold"))
        console.print(_terms(terms))
        _sentences(console, "", terms.notes)
    if table.claims:
        console.print()
        console.print(_claims(table))
    _sentences(console, "", [table.verdict])
    _sentences(console, "", table.warnings)
    _sentences(console, "Do not count:", table.states)
    _sentences(console, "", [f"†{number} {text}" for number, text in enumerate(table.footnotes, start=1)])
    _sentences(console, "", [LEGEND + ".", *table.captions])
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _rows(block: TableBlock, table: Table) -> RichTable:
    grid = _grid()
    grid.add_column("row", overflow="fold", min_width=10)
    for column in table.columns:
        grid.add_column(column.title, justify="right", no_wrap=True)
    grid.add_column("n", justify="right", no_wrap=True)
    if block.renamed:
        grid.add_column("paper's\nrow", no_wrap=True)
    for column in block.published:
        grid.add_column(f"paper\n{column.title}", justify="right", no_wrap=True)
    if block.published:
        grid.add_column("verdict", overflow="fold")
    for row in block.rows[:MAX_ROWS]:
        cells: list[str | Text] = [row.marked_label]
        cells += [Text.assemble((value.text, _STYLES[value.mark]), f" {_SIGNS[value.mark]}") for value in row.values]
        cells += [row.n]
        if block.published:
            cells += [row.paper_label or "-"] if block.renamed else []
            cells += [row.published(column) for column in block.published]
            cells += [row.verdict]
        grid.add_row(*cells)
    return grid


def _differences(block: TableBlock) -> RichTable:
    grid = _grid()
    for number, heading in enumerate(DIFFERENCE_HEADINGS):
        is_number = 2 < number < len(DIFFERENCE_HEADINGS) - 1
        grid.add_column(heading, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    shown = {row.number for row in block.rows[:MAX_ROWS]}
    for row, difference in block.differences:
        if row.number not in shown:
            continue
        grid.add_row(*difference_texts(row, difference), style="bold" if difference.significant else "")
    return grid


def _terms(terms: TermsTable) -> RichTable:
    grid = _grid()
    for number, heading in enumerate(TERM_HEADINGS):
        grid.add_column(heading, justify="right" if number else "left")
    for line in terms.lines:
        grid.add_row(*line)
    return grid


def _claims(table: Table) -> RichTable:
    grid = _grid()
    for heading in ("the paper's claim", "outcome", "because"):
        grid.add_column(heading, overflow="fold")
    for claim in table.claims:
        grid.add_row(claim.name, Text(claim.outcome, "bold"), claim.sentence)
    return grid


def _grid() -> RichTable:
    return RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1))


def _sentences(console: Console, heading: str, sentences: Iterable[str]) -> None:
    lines = [line for line in sentences if line]
    if not lines:
        return
    console.print()
    if heading:
        console.print(heading)
    for line in lines:
        console.print(Padding(Text(line), (0, 0, 0, 2 if heading else 0)))
