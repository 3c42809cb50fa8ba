"""The table as Markdown, for a repository, a pull request or MLflow."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tabulate import tabulate

from sweeps.core.report.table import DIFFERENCE_HEADINGS, TERM_HEADINGS, Mark, Table, TableBlock, difference_texts

_MARKS: dict[Mark, tuple[str, str]] = {"bold": ("**", "**"), "underlined": ("<u>", "</u>"), "": ("", "")}


def markdown(table: Table) -> str:
    """The table with all it says."""
    parts = [f"# {escaped(table.title)}", *_paragraph(table.verdict)]
    for block in table.blocks:
        parts.append(_rows(block, table))
        if block.differences:
            lines = [difference_texts(row, difference) for row, difference in block.differences]
            parts.append(_pipe(DIFFERENCE_HEADINGS, lines, left=3))
    if table.claims:
        claims = [(claim.name, f"**{claim.outcome}**", claim.sentence) for claim in table.claims]
        parts.append(_pipe(("the paper's claim", "outcome", "because"), claims, left=3, marked=True))
    for terms in table.terms:
        parts += [escaped(terms.title) + ":", _pipe(TERM_HEADINGS, terms.lines)]
        parts += [_list(terms.notes)] if terms.notes else []
    if table.warnings:
        parts.append(_list(table.warnings))
    parts.append(_list(["Bold: the best, or not distinguishable from it; underlined: the second.", *table.captions]))
    if table.footnotes:
        parts.append(_list([f"†{number} {text}" for number, text in enumerate(table.footnotes, start=1)]))
    if table.states:
        parts += ["Do not count:", _list(table.states)]
    for per_class in table.per_class:
        headings = ("class", *(label for label, _, _ in per_class.rows))
        lines = [(name, *(means[i] for _, means, _ in per_class.rows)) for i, name in enumerate(per_class.classes)]
        parts += [f"## {escaped(per_class.column.title)} by class", _pipe(headings, lines)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    r"""``text`` without a meaning in Markdown or HTML.

    >>> print(escaped("a|b <c> 2*3"))
    a\|b \<c\> 2\*3
    """
    return re.sub(r"([\\|<>*`])", r"\\\1", text.replace("\n", " "))


def _rows(block: TableBlock, table: Table) -> str:
    headings = [block.title, *(column.title for column in table.columns), "n"]
    if block.published:
        headings += ["paper's row"] if block.renamed else []
        headings += [f"paper {column.title}" for column in block.published] + ["verdict"]
    lines = []
    for row in block.rows:
        line = [escaped(row.marked_label)]
        for value in row.values:
            before, after = _MARKS[value.mark]
            line.append(f"{before}{value.text}{after}")
        line.append(row.n)
        if block.published:
            line += [escaped(row.paper_label or "-")] if block.renamed else []
            line += [row.published(column) for column in block.published] + [escaped(row.verdict)]
        lines.append(line)
    return _pipe(headings, lines, marked=True)


def _pipe(headings: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1, *, marked: bool = False) -> str:
    rows = lines if marked else [[escaped(cell) for cell in line] for line in lines]
    align = ["left" if number < left else "right" for number in range(len(headings))]
    return tabulate(
        rows, headers=[escaped(text) for text in headings], tablefmt="pipe", colalign=align, disable_numparse=True
    )


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)


def _paragraph(text: str) -> list[str]:
    return [escaped(text)] if text else []
