"""The table of a study: rows, comparisons and sentences, as the terminal, Markdown, LaTeX and the page print them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sweeps.core.findings.verdict import ClaimVerdict
from sweeps.core.report.columns import Measurement, StatisticColumn, TableMetric, columns_of, mean_text
from sweeps.core.report.text_grid import TextCell, TextColumn, TextGrid

LEGEND = "Bold: the best, or not distinguishable from it; underlined: the second."
NOT_VOC = (
    "Ours is measured on the embedded benchmark: small generated scenes and a small network. It is not PASCAL VOC: "
    "the size of its numbers says nothing beside the paper's; what can be compared is the order of the rows."
)
"""The caption of a study on the embedded benchmark, which the page sets apart."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of the table.

    Attributes:
        number: Its number in the study, over all blocks.
        label: First column.
        role: ``base``, ``row`` or ``a/a`` (the base once more with other seeds).
        versus: Label of the row it is compared with.
        measurements: One for each metric of the table.
        n: Seeds behind it, as ``3`` or, where some are missing, ``2 of 3``; ``3 (seg 2)`` where a metric of a finished
            trial is not a number.
        footnotes: Numbers of its daggers, see ``StudyTable.footnotes``.
        paper_label: Label of the published row beside it.
        paper: The published values by key of the metric.
        verdict: What became of the published values, in a few words; empty where there are none.
    """

    number: int
    label: str
    role: Literal["base", "row", "a/a"]
    versus: str | None
    measurements: tuple[Measurement, ...]
    n: str
    footnotes: tuple[int, ...]
    paper_label: str | None
    paper: Mapping[str, str]
    verdict: str

    @property
    def comparisons(self) -> tuple[Measurement, ...]:
        """The measurements that have a difference to the row that this one is compared with."""
        return tuple(measurement for measurement in self.measurements if measurement.figures.paired is not None)

    def published(self, metric: TableMetric) -> str:
        """The paper's value; ``-`` where it has none."""
        return self.paper.get(metric.key, "-")


@dataclass(frozen=True, slots=True)
class TableBlock:
    """Rows under one heading.

    Attributes:
        title: What varies.
        rows: In the study's order.
        compared: Metrics whose comparisons are declared for this block; the CSV has the other differences.
        published: Metrics that any published row of this block has.
    """

    title: str
    rows: tuple[TableRow, ...]
    compared: tuple[TableMetric, ...]
    published: tuple[TableMetric, ...]

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
    def comparisons(self) -> tuple[Measurement, ...]:
        """The differences that are printed below the rows, in the compared metrics."""
        return tuple(
            measurement for row in self.rows for measurement in row.comparisons if measurement.metric in self.compared
        )


@dataclass(frozen=True, slots=True)
class StudyTable:
    """A study's table.

    Attributes:
        title: What the study is about.
        columns: The statistics that are printed.
        metrics: The metrics that they are of.
        blocks: Its rows, block by block.
        claims: The paper's claims, and what became of them.
        verdict: One sentence over all of them.
        warnings: Where a row holds at one value of another factor only.
        footnotes: What the daggers say; ``†n`` is the n-th, counted from 1.
        states: Trials that do not count, and why, one sentence each.
        captions: What a reader must know, in sentences.
    """

    title: str
    columns: tuple[StatisticColumn, ...]
    metrics: tuple[TableMetric, ...]
    blocks: tuple[TableBlock, ...]
    claims: tuple[ClaimVerdict, ...]
    verdict: str
    warnings: tuple[str, ...]
    footnotes: tuple[str, ...]
    states: tuple[str, ...]
    captions: tuple[str, ...]

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Every row under every metric, in the study's order."""
        rows = sorted((row for block in self.blocks for row in block.rows), key=lambda row: row.number)
        return tuple(measurement for row in rows for measurement in row.measurements)


@dataclass(frozen=True, slots=True)
class _RowColumn:
    """A column of the table of the rows: how it looks, and what it prints of a row."""

    look: TextColumn
    cell: Callable[[TableBlock, TableRow], TextCell]


def rows_grid(table: StudyTable, block: TableBlock, like: Sequence[TableBlock] = ()) -> TextGrid:
    """The rows of a block: label, means, number of seeds, the paper's values and the verdict.

    Args:
        table: The table.
        block: The block.
        like: Blocks whose columns this one is to have, too, so that LaTeX can print all of them as one table.
    """
    columns = _row_columns(table.metrics, block.title, like or [block])
    lines = tuple(tuple(column.cell(block, row) for column in columns) for row in block.rows)
    return TextGrid(tuple(column.look for column in columns), lines, group=block.title)


def differences_grid(table: StudyTable, block: TableBlock) -> TextGrid:
    """The declared comparisons of a block, a line for each, with the columns of ``differences``."""
    columns = columns_of("differences", table.columns)
    lines = tuple(
        tuple(TextCell(column.print(one), "significant" if one.figures.significant else "") for column in columns)
        for one in block.comparisons
    )
    return TextGrid(tuple(column.look for column in columns), lines, group=block.title)


def claims_grid(table: StudyTable) -> TextGrid:
    """The claims of the paper and what became of them."""
    columns = tuple(TextColumn(heading, wraps=True) for heading in ("the paper's claim", "outcome", "because"))
    lines = tuple(
        (TextCell(claim.name), TextCell(claim.text, "strong"), TextCell(claim.sentence)) for claim in table.claims
    )
    return TextGrid(columns, lines)


def _row_columns(metrics: Iterable[TableMetric], label: str, blocks: Sequence[TableBlock]) -> list[_RowColumn]:
    published = [metric for metric in metrics if any(metric in block.published for block in blocks)]
    columns = [_RowColumn(TextColumn(label, wraps=True), lambda _, row: TextCell(row.label, footnotes=row.footnotes))]
    columns += [_mean_column(index, metric) for index, metric in enumerate(metrics)]
    columns.append(_RowColumn(TextColumn("n", "right", over="ours", under="n"), lambda _, row: TextCell(row.n)))
    if any(block.renamed for block in blocks):
        look = TextColumn("paper's row", "right", over="paper", under="row")
        columns.append(_RowColumn(look, lambda _, row: TextCell(row.paper_label or "-")))
    columns += map(_published_column, published)
    if published:
        look = TextColumn("verdict", wraps=True, over="verdict")
        columns.append(_RowColumn(look, lambda _, row: TextCell(row.verdict)))
    return columns


def _mean_column(index: int, metric: TableMetric) -> _RowColumn:
    def cell(_: TableBlock, row: TableRow) -> TextCell:
        measurement = row.measurements[index]
        return TextCell(mean_text(measurement), measurement.mark)

    return _RowColumn(TextColumn(metric.title, "right", over="ours", under=metric.title), cell)


def _published_column(metric: TableMetric) -> _RowColumn:
    def cell(block: TableBlock, row: TableRow) -> TextCell:
        return TextCell(row.published(metric) if metric in block.published else "")

    look = TextColumn(f"paper {metric.title}", "right", over="paper", under=metric.title)
    return _RowColumn(look, cell)
