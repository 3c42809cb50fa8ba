"""IoU of every class, with the difference from the row's base."""

from __future__ import annotations

from dataclasses import dataclass

from sweeps.core.design.study import Metric
from sweeps.core.report.numbers import format_difference, format_value
from sweeps.core.report.section import Card, Section, Source, common_seeds
from sweeps.core.report.text_grid import TextColumn, TextGrid, make_cells


@dataclass(frozen=True, slots=True)
class ClassRow:
    """Means of a row by class, and their differences from the base row."""

    label: str
    means: tuple[str, ...]
    differences: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class ClassTable:
    """IoU of every class for one metric.

    ``classes`` holds the names in the order of the class numbers.
    """

    metric: Metric
    classes: tuple[str, ...]
    rows: tuple[ClassRow, ...]


def _show(source: Source) -> Card | str:
    tables = [
        table for metric in source.table.metrics if (table := _table(source, metric)) is not None
    ]
    if not tables:
        return "no finished trial has scores by class"
    return Card(
        "Means over seeds, each with its difference from the row's base." + common_seeds(source),
        grids=tuple(map(_grid, tables)),
        content=lambda: tables,
    )


CLASSES = Section("classes", "Classes", _show, "classes.html.j2", text="appendix")


def _table(source: Source, metric: Metric) -> ClassTable | None:
    rows = []
    names: tuple[str, ...] = ()
    for row, numbers in zip(source.study.rows, source.analysis.rows, strict=True):
        scores = numbers.classes.get(metric.key, ())
        if not scores:
            continue
        names = tuple(score.name for score in scores)
        means = tuple(
            "-"
            if score.summary is None
            else format_value(score.summary.mean, percent=metric.percent)
            for score in scores
        )
        differences = tuple(
            None
            if score.paired is None
            else format_difference(score.paired.difference, percent=metric.percent)
            for score in scores
        )
        rows.append(ClassRow(row.label, means, differences))
    return ClassTable(metric, names, tuple(rows)) if rows else None


def _grid(table: ClassTable) -> TextGrid:
    """Make a table with one line for each class: it stays readable with many classes."""
    columns = (TextColumn("class"), *(TextColumn(row.label, "right") for row in table.rows))
    lines = tuple(
        make_cells(name, *(row.means[number] for row in table.rows))
        for number, name in enumerate(table.classes)
    )
    return TextGrid(columns, lines, title=f"{table.metric.title} by class")
