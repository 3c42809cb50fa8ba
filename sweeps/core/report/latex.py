r"""Table as LaTeX in ASCII, for ``\input``; the document needs ``booktabs`` and ``graphicx``."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby

from sweeps.core.report.table import LEGEND, StudyTable, differences_grid, rows_grid
from sweeps.core.report.text_grid import Mark, TextCell, TextGrid

_BOLD = r"\textbf{%s}"
_MARKS: dict[Mark, str] = {
    "best": _BOLD,
    "strong": _BOLD,
    "significant": _BOLD,
    "second": r"\underline{%s}",
}
_FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""Scales a table down to the width of the line if it is wider."""

_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "†": r"$\dag$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "→": r"$\to$",
    "²": "$^2$",
    "η": r"$\eta$",
    "λ": r"$\lambda$",
    "τ": r"$\tau$",
    "μ": r"$\mu$",
    "\N{GREEK SMALL LETTER ALPHA}": r"$\alpha$",
    "β": r"$\beta$",
    "Δ": r"$\Delta$",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def latex(table: StudyTable, grids: Sequence[TextGrid] = ()) -> str:
    """Make a ``table`` of the rows and the differences; notes follow it as text.

    Args:
        table: The study's table.
        grids: Tables of further analyses.
    """
    rows = [rows_grid(table, block, table.blocks) for block in table.blocks]
    differences = [differences_grid(table, block) for block in table.blocks if block.comparisons]
    lines = [
        r"% Needs \usepackage{booktabs,graphicx}.",
        r"\begin{table}[t]",
        r"\centering",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{escaped(table.title)}.}}",
        *_tabular(rows),
        *(["", r"\medskip", *_tabular(differences)] if differences else []),
        *(line for grid in grids for line in ["", r"\medskip", *_tabular([grid])]),
        *_legend(table),
        r"\end{table}",
        *_notes(table, grids),
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    r"""Escape ``text`` for TeX, with a minus sign before numbers; unknown characters become ``?``.

    >>> print(escaped("M_m: -0.5 & 100 % ± 3"))
    M\_m: $-$0.5 \& 100 \% $\pm$ 3
    """
    pieces = re.split(r"((?<![\w.])-(?=\d))", text.replace("\n", " "))
    return "".join(
        "$-$" if number % 2 else "".join(map(_character, piece))
        for number, piece in enumerate(pieces)
    )


def _character(character: str) -> str:
    if character in _CHARACTERS:
        return _CHARACTERS[character]
    if character.isascii():
        return character
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or "?"


def _dagger(numbers: Sequence[int]) -> str:
    return rf"$^{{\dag {','.join(map(str, numbers))}}}$" if numbers else ""


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _tabular(grids: Sequence[TextGrid]) -> list[str]:
    """Print tables with the same columns as one ``tabular``, each under its title or group."""
    columns = grids[0].columns
    titled = [_spanning(grids[0])] if grids[0].title else []
    lines = [
        _FIT,
        rf"\begin{{tabular}}"
        rf"{{{''.join('l' if column.align == 'left' else 'c' for column in columns)}}}",
        r"\toprule",
        *titled,
        *_headings(grids[0]),
    ]
    for grid in grids:
        lines += [r"\midrule", *([] if titled else [_spanning(grid)])]
        lines += [_line([_cell(cell) for cell in line]) for line in grid.lines]
    return [*lines, r"\bottomrule", r"\end{tabular}}"]


def _spanning(grid: TextGrid) -> str:
    """Print the table's title or group over all columns."""
    return (
        rf"\multicolumn{{{len(grid.columns)}}}{{l}}"
        rf"{{\textit{{{escaped(grid.title or grid.group)}}}}} \\"
    )


def _headings(grid: TextGrid) -> list[str]:
    """Print one line of headings, or two if groups of columns share an upper heading."""
    columns = grid.columns
    overs = [
        (over, list(places))
        for over, places in groupby(range(len(columns)), lambda n: columns[n].over)
    ]
    if len({column.over for column in columns} - {""}) < 2:
        headings = [
            "" if column.heading == grid.group else _heading(column.heading) for column in columns
        ]
        return [_line(headings)]
    cells, rules = [], []
    for over, places in overs:
        if not columns[places[0]].under:
            cells.append(escaped(over))
            continue
        cells.append(rf"\multicolumn{{{len(places)}}}{{c}}{{{escaped(over)}}}")
        rules.append(rf"\cmidrule(lr){{{places[0] + 1}-{places[-1] + 1}}}")
    return [_line(cells), " ".join(rules), _line([_heading(column.under) for column in columns])]


def _heading(text: str) -> str:
    return "$n$" if text == "n" else escaped(text)


def _cell(cell: TextCell) -> str:
    text = escaped(cell.text) + _dagger(cell.footnotes)
    return _MARKS.get(cell.mark, "%s") % text if text else ""


def _legend(table: StudyTable) -> list[str]:
    """Print the legend and footnotes, which must stand in the float of the table."""
    lines = [LEGEND]
    lines += [
        f"{_dagger([number])}{escaped(text)}"
        for number, text in enumerate(table.footnotes, start=1)
    ]
    return ["", *_small(lines)]


def _notes(table: StudyTable, grids: Sequence[TextGrid]) -> list[str]:
    """Print the notes after the float, because a float must fit on a page."""
    notes = [f"{claim.name}: {claim.text}. {claim.sentence}" for claim in table.claims]
    notes += [*([table.verdict] if table.verdict else []), *table.warnings]
    notes += [f"{grid.title}: {note}" for grid in grids for note in grid.notes]
    notes += [*table.captions, *table.states]
    return _small([escaped(note) for note in notes])


def _small(lines: Sequence[str]) -> list[str]:
    return [
        r"\par\medskip\noindent{\scriptsize\raggedright",
        *(f"{line}\\par" for line in lines),
        "}",
    ]
