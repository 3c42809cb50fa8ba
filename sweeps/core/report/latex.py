r"""The table as LaTeX in ASCII, to be read by ``\input``; the document needs ``booktabs`` and ``graphicx``."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from sweeps.core.report.table import DIFFERENCE_HEADINGS, TERM_HEADINGS, Mark, Table, TableBlock, difference_texts

_MARKS: dict[Mark, str] = {"bold": r"\textbf{%s}", "underlined": r"\underline{%s}", "": "%s"}
_FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""Scales down what is wider than the line, and nothing else."""

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


def latex(table: Table) -> str:
    """A ``table`` with one ``tabular`` of the rows and one of the differences; the notes follow it in the text."""
    lines = [
        r"% Needs \usepackage{booktabs,graphicx}.",
        r"\begin{table}[t]",
        r"\centering",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{escaped(table.title)}.}}",
        *_rows(table),
        *_differences(table),
        *_terms(table),
        *_legend(table),
        r"\end{table}",
        *_notes(table),
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    r"""``text`` without a meaning in TeX, and with the minus before a number; unknown characters become ``?``.

    >>> print(escaped("M_m: -0.5 & 100 % ± 3"))
    M\_m: $-$0.5 \& 100 \% $\pm$ 3
    """
    pieces = re.split(r"((?<![\w.])-(?=\d))", text.replace("\n", " "))
    return "".join("$-$" if number % 2 else "".join(map(_character, piece)) for number, piece in enumerate(pieces))


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


def _rows(table: Table) -> list[str]:
    published = [column for column in table.columns if any(column in block.published for block in table.blocks)]
    renamed = any(block.renamed for block in table.blocks)
    width = 2 + len(table.columns) + len(published) + bool(published) + renamed
    headings = ["", *(escaped(column.title) for column in table.columns), "$n$"]
    headings += [*(["row"] if renamed else []), *(escaped(column.title) for column in published)]
    headings += [""] if published else []
    lines = [
        _FIT,
        rf"\begin{{tabular}}{{l{'c' * (width - 1 - bool(published))}{'l' if published else ''}}}",
        r"\toprule",
    ]
    if published:
        first = 3 + len(table.columns)
        last = first + len(published) + renamed - 1
        over = rf" & \multicolumn{{{len(table.columns) + 1}}}{{c}}{{ours}}"
        lines.append(rf"{over} & \multicolumn{{{len(published) + renamed}}}{{c}}{{paper}} & verdict \\")
        lines.append(rf"\cmidrule(lr){{2-{first - 1}}} \cmidrule(lr){{{first}-{last}}}")
    lines.append(_line(headings))
    for block in table.blocks:
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\textit{{{escaped(block.title)}}}}} \\"]
        for row in block.rows:
            cells = [escaped(row.label) + _dagger(row.footnotes)]
            cells += [_MARKS[value.mark] % escaped(value.text) for value in row.values]
            cells += [row.n, *([escaped(row.paper_label or "-")] if renamed else [])]
            cells += ["" if column not in block.published else escaped(row.published(column)) for column in published]
            cells += [escaped(row.verdict)] if published else []
            lines.append(_line(cells))
    return [*lines, r"\bottomrule", r"\end{tabular}}"]


def _differences(table: Table) -> list[str]:
    if not any(block.differences for block in table.blocks):
        return []
    width = len(DIFFERENCE_HEADINGS)
    lines = ["", r"\medskip", _FIT, rf"\begin{{tabular}}{{lll{'c' * (width - 4)}l}}", r"\toprule"]
    lines.append(_line([escaped(heading) for heading in DIFFERENCE_HEADINGS]))
    for block in table.blocks:
        lines += _block_differences(block)
    return [*lines, r"\bottomrule", r"\end{tabular}}"]


def _block_differences(block: TableBlock) -> list[str]:
    if not block.differences:
        return []
    title = rf"\multicolumn{{{len(DIFFERENCE_HEADINGS)}}}{{l}}{{\textit{{{escaped(block.title)}}}}} \\"
    lines = [r"\midrule", title]
    for row, difference in block.differences:
        texts = [escaped(text) for text in difference_texts(row, difference)]
        lines.append(_line([rf"\textbf{{{text}}}" if difference.significant and text else text for text in texts]))
    return lines


def _terms(table: Table) -> list[str]:
    lines: list[str] = []
    for terms in table.terms:
        lines += ["", r"\medskip", _FIT, rf"\begin{{tabular}}{{l{'c' * (len(TERM_HEADINGS) - 1)}}}", r"\toprule"]
        lines += [rf"\multicolumn{{{len(TERM_HEADINGS)}}}{{l}}{{\textit{{{escaped(terms.title)}}}}} \\"]
        lines += [_line([escaped(heading) for heading in TERM_HEADINGS]), r"\midrule"]
        lines += [_line([escaped(text) for text in line]) for line in terms.lines]
        lines += [r"\bottomrule", r"\end{tabular}}"]
    return lines


def _legend(table: Table) -> list[str]:
    """What must stand at the table itself."""
    lines = ["Bold: the best, or not distinguishable from it; underlined: the second."]
    lines += [f"{_dagger([number])}{escaped(text)}" for number, text in enumerate(table.footnotes, start=1)]
    return ["", *_small(lines)]


def _notes(table: Table) -> list[str]:
    """What follows the table in the text: a float must fit on a page."""
    notes = [f"{claim.name}: {claim.outcome}. {claim.sentence}" for claim in table.claims]
    notes += [*([table.verdict] if table.verdict else []), *table.warnings]
    notes += [f"{terms.title}: {note}" for terms in table.terms for note in terms.notes]
    notes += [*table.captions, *table.states]
    return _small([escaped(note) for note in notes])


def _small(lines: Sequence[str]) -> list[str]:
    return [r"\par\medskip\noindent{\scriptsize\raggedright", *(f"{line}\\par" for line in lines), "}"]
