"""Tables of text, which all formats print, and the columns that make them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Of = TypeVar("Of")
Value = float | str | bool | None

Place = Literal["values", "differences"]
"""Table for people that has a column: the values of a row, or its differences from the base."""

Mark = Literal["best", "second", "significant", "strong", ""]
"""``best``: best of the column, or not distinguishable from it. ``second``: best of the others."""


@dataclass(frozen=True, slots=True)
class TextCell:
    """Text of a cell, with its mark and the numbers of its footnotes."""

    text: str
    mark: Mark = ""
    footnotes: tuple[int, ...] = ()

    @property
    def full_text(self) -> str:
        """Text with its footnotes, such as ``#10 †1``."""
        return " ".join([self.text, *(f"†{number}" for number in self.footnotes)])


@dataclass(frozen=True, slots=True)
class TextColumn:
    """A column of a table.

    Attributes:
        heading: Heading in tables with one line of headings.
        align: Alignment of the texts.
        wraps: Whether a terminal may wrap the texts.
        over: Upper of two headings, which neighbours share, such as ``paper``.
        under: Lower of two headings, below ``over``.
    """

    heading: str
    align: Literal["left", "right"] = "left"
    wraps: bool = False
    over: str = ""
    under: str = ""


@dataclass(frozen=True, slots=True)
class TextGrid:
    """A table of text.

    Attributes:
        columns: Columns.
        lines: Lines with one cell for each column.
        title: Heading over the table; empty if the surrounding text names the table.
        group: Heading of the lines when LaTeX prints several tables as one.
        notes: Sentences below the table.
    """

    columns: tuple[TextColumn, ...]
    lines: tuple[tuple[TextCell, ...], ...]
    title: str = ""
    group: str = ""
    notes: tuple[str, ...] = ()


def make_cells(*texts: str) -> tuple[TextCell, ...]:
    """Make a line of cells without marks."""
    return tuple(map(TextCell, texts))


@dataclass(frozen=True, slots=True)
class Column(Generic[Of]):
    """A column of a report.

    It shows a statistic of a row and a metric, or a setting of a search's trial.

    Attributes:
        key: Name for programs: the heading in a CSV file.
        value: Function that returns the value for programs, or ``None``. A column without this
            function is for people only.
        heading: Heading for people.
        text: Function that returns the text for people. A column without this function is for
            programs only.
        places: Tables for people that have the column.
        align: Alignment of the text for people.
        wraps: Whether a terminal may wrap the texts.
        note: Sentence below the table that explains the column; empty if the captions explain it.
    """

    key: str
    value: Callable[[Of], Value] | None = None
    heading: str = ""
    text: Callable[[Of], str] | None = None
    places: tuple[Place, ...] = ()
    align: Literal["left", "right"] = "right"
    wraps: bool = False
    note: str = ""

    @property
    def look(self) -> TextColumn:
        """The column of a table of text."""
        return TextColumn(self.heading, self.align, self.wraps)

    def print(self, thing: Of) -> str:
        """Return the text for people; empty if the column has none."""
        return self.text(thing) if self.text else ""


def columns_csv(
    columns: Iterable[Column[Of]], things: Iterable[Of], text: Callable[[Value], object]
) -> str:
    """Make a CSV file with one line for each thing.

    Args:
        columns: Columns; those without a ``value`` are left out.
        things: Arguments of the column functions.
        text: Function that formats a value.
    """
    value_columns = [(column.key, column.value) for column in columns if column.value is not None]
    return csv_text(
        [key for key, _ in value_columns],
        ([text(value(thing)) for _, value in value_columns] for thing in things),
    )


def csv_text(headings: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    """Make a CSV file from headings and lines."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([headings, *lines])
    return text.getvalue()
