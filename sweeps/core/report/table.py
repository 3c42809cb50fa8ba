"""The table of a study as words: one model that the terminal, Markdown, LaTeX and the page print.

Its numbers are text already, so that all forms show the same digits: percent with one digit, differences with two.
``table.csv`` is the form for programs: fractions with six digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Mark = Literal["bold", "underlined", ""]

DIFFERENCE_HEADINGS = ("row", "against", "metric", "difference", "95 % interval", "p", "d", "over images", "")
"""Headings of the differences, see ``difference_texts``."""
TERM_HEADINGS = ("term", "df", "F", "p", "partial η²")
"""Headings of an analysis of variance, see ``TermsTable``."""

NOT_VOC = (
    "Ours is measured on the embedded benchmark: small generated scenes and a small network. It is not PASCAL VOC: "
    "the size of its numbers says nothing beside the paper's; what can be compared is the order of the rows."
)
"""The caption of a study on the embedded benchmark, which the page sets apart."""


@dataclass(frozen=True, slots=True)
class Column:
    """A metric of the table.

    Attributes:
        key: Key of the metric.
        title: Heading.
        meaning: What it is and in which unit, in words.
        percent: Whether it is printed in percent.
    """

    key: str
    title: str
    meaning: str
    percent: bool


@dataclass(frozen=True, slots=True)
class Value:
    """What a row has under a metric.

    Attributes:
        mean: Mean over the seeds; ``-`` where there is none.
        sd: Sample standard deviation; ``None`` below two seeds.
        interval: t interval of the mean, as ``48.1 to 52.7``.
        n: Number of seeds behind it.
        mark: ``bold``: the best, or not distinguishable from it; ``underlined``: the second.
    """

    mean: str
    sd: str | None
    interval: str | None
    n: int
    mark: Mark

    @property
    def text(self) -> str:
        """``mean ± standard deviation``, without the second where one seed gives none."""
        return self.mean if self.sd is None else f"{self.mean} ± {self.sd}"


@dataclass(frozen=True, slots=True)
class Difference:
    """A row against the row it is compared with, under one metric, paired by seed.

    Attributes:
        column: The metric.
        declared: Whether the study declared it: only then it has a ``p`` that counts for anything.
        value: Mean difference with its sign.
        interval: Its t interval, as ``-0.31 to +1.20``; ``None`` below two pairs.
        p: Two-sided paired t test, corrected by Holm over all declared comparisons of the study.
        significant: Whether ``p`` is below the study's significance.
        effect: Standardised effect size.
        images: Interval over images, from the same trainings: noise of the test set, no part of ``p``.
        remark: ``underpowered`` where the study could not have shown its smallest effect, ``within noise`` where the
            difference is smaller than what differs between the base and the base again.
    """

    column: Column
    declared: bool
    value: str
    interval: str | None
    p: str | None
    significant: bool
    effect: str | None
    images: str | None
    remark: str


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of the table.

    Attributes:
        number: Its number in the study, over all blocks.
        label: First column.
        role: ``base``, ``row`` or ``a/a`` (the base once more with other seeds).
        versus: Label of the row it is compared with.
        values: One for each column.
        differences: One for each column that can be compared, in the columns' order.
        n: Seeds behind it, as ``3`` or, where some are missing, ``2 of 3``; ``3 (seg 2)`` where a metric of a finished
            trial is not a number.
        footnotes: Numbers of its daggers, see ``Table.footnotes``.
        paper_label: Label of the published row beside it.
        paper: The published values by key of the metric.
        verdict: What became of the published values, in a few words; empty where there are none.
    """

    number: int
    label: str
    role: Literal["base", "row", "a/a"]
    versus: str | None
    values: tuple[Value, ...]
    differences: tuple[Difference, ...]
    n: str
    footnotes: tuple[int, ...]
    paper_label: str | None
    paper: Mapping[str, str]
    verdict: str

    @property
    def marked_label(self) -> str:
        """The label with its daggers: ``#10 †1``."""
        return " ".join([self.label, *(f"†{number}" for number in self.footnotes)])

    def published(self, column: Column) -> str:
        """The paper's value; ``-`` where it has none."""
        return self.paper.get(column.key, "-")


@dataclass(frozen=True, slots=True)
class TableBlock:
    """Rows under one heading.

    Attributes:
        title: What varies.
        rows: In the study's order.
        compared: Columns whose comparisons are declared for this block; the other differences are told by the CSV.
        published: Columns that any published row of this block has.
        source: Where they are published, and how they were measured; empty where nothing is.
    """

    title: str
    rows: tuple[TableRow, ...]
    compared: tuple[Column, ...]
    published: tuple[Column, ...]
    source: str

    @property
    def against(self) -> str:
        """What the rows are compared with, in words: the base, or on a ladder the row above."""
        compared = [row for row in self.rows if row.role == "row"]
        of_base = {row.label for row in self.rows if row.role == "base"}
        if all(row.versus in of_base for row in compared):
            return "the base"
        above = dict(zip((row.label for row in self.rows[1:]), (row.label for row in self.rows), strict=False))
        return "the row above" if all(above.get(row.label) == row.versus for row in compared) else "another row"

    @property
    def renamed(self) -> bool:
        """Whether a row stands beside a published one of another label, so that the table must say which."""
        return any(row.paper_label not in (None, row.label) for row in self.rows)

    @property
    def differences(self) -> tuple[tuple[TableRow, Difference], ...]:
        """What is printed under the rows: their differences in the compared columns."""
        return tuple(
            (row, difference)
            for row in self.rows
            for difference in row.differences
            if difference.column in self.compared
        )


@dataclass(frozen=True, slots=True)
class TableClaim:
    """A claim of the paper and what became of it: a word (``underpowered``) and a sentence."""

    name: str
    outcome: str
    sentence: str


@dataclass(frozen=True, slots=True)
class PerClass:
    """IoU of every class under one metric, rows as in the table.

    Attributes:
        column: The metric.
        classes: Names, in the order of their numbers.
        rows: Label of the row, its means over the seeds and their differences to the row it is compared with.
    """

    column: Column
    classes: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...], tuple[str | None, ...]], ...]


@dataclass(frozen=True, slots=True)
class TermsTable:
    """An analysis of variance, a line a term under ``TERM_HEADINGS``; ``notes`` say what it leaves out and why."""

    title: str
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A study's table.

    Attributes:
        title: What the study is about.
        columns: Its metrics.
        blocks: Its rows, block by block.
        claims: The paper's claims.
        verdict: One sentence over all of them.
        warnings: Where a row holds at one value of another factor only.
        terms: Analyses of variance of blocks with several factors.
        footnotes: What the daggers say; ``†n`` is the n-th, counted from 1.
        states: Trials that do not count, and why, one sentence each.
        captions: What a reader must know, in sentences.
        per_class: One for each metric that has it.
    """

    title: str
    columns: tuple[Column, ...]
    blocks: tuple[TableBlock, ...]
    claims: tuple[TableClaim, ...]
    verdict: str
    warnings: tuple[str, ...]
    terms: tuple[TermsTable, ...]
    footnotes: tuple[str, ...]
    states: tuple[str, ...]
    captions: tuple[str, ...]
    per_class: tuple[PerClass, ...]


def difference_texts(row: TableRow, difference: Difference) -> tuple[str, ...]:
    """A difference as a line of text under ``DIFFERENCE_HEADINGS``."""
    return (
        row.label,
        row.versus or "",
        difference.column.title,
        difference.value,
        difference.interval or "-",
        difference.p or "-",
        difference.effect or "-",
        difference.images or "-",
        difference.remark,
    )


def printed(value: float, *, percent: bool) -> str:
    """A value as people read it: percent with one digit, or a plain number with three.

    >>> printed(0.705, percent=True), printed(0.705, percent=False)
    ('70.5', '0.705')
    """
    return without_negative_zero(f"{100 * value:.1f}" if percent else f"{value:.3f}")


def printed_difference(value: float, *, percent: bool) -> str:
    """A difference with its sign: points with two digits, or a plain number with four.

    >>> printed_difference(-0.0123, percent=True), printed_difference(-1e-9, percent=True)
    ('-1.23', '0.00')
    """
    return without_negative_zero(f"{100 * value:+.2f}" if percent else f"{value:+.4f}")


def printed_p(p: float | None) -> str | None:
    """A p value with three digits.

    >>> printed_p(0.0312), printed_p(0.0001)
    ('0.031', '<0.001')
    """
    if p is None:
        return None
    return "<0.001" if p < 0.0005 else f"{p:.3f}"


def is_percent(key: str) -> bool:
    """Whether a metric is a score in [0, 1], which is printed in percent."""
    return not any(part in key for part in ("similarity", "loss", "time", "bytes"))


def without_negative_zero(text: str) -> str:
    """What is zero after rounding has no sign."""
    return text.lstrip("+-") if float(text) == 0 else text
