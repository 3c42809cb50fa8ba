"""Tables of text and what they are made of. The terminal, Markdown, LaTeX, CSV and the page print them from these."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Of = TypeVar("Of")
Value = float | str | bool | None

Place = Literal["values", "differences"]
"""A table for people: of what a row has, or of how it differs from the row it is compared with."""

Mark = Literal["best", "second", "significant", "strong", ""]
"""``best``: the best of its column, or not distinguishable from it; ``second``: the best of the others."""


@dataclass(frozen=True, slots=True)
class TextCell:
    """A text, what sets it apart from the other cells of its column, and the numbers of its footnotes."""

    text: str
    mark: Mark = ""
    footnotes: tuple[int, ...] = ()

    @property
    def full_text(self) -> str:
        """The text with its footnotes: ``#10 †1``."""
        return " ".join([self.text, *(f"†{number}" for number in self.footnotes)])


@dataclass(frozen=True, slots=True)
class TextColumn:
    """A column of a table.

    Attributes:
        heading: Its heading where a table has one line of headings.
        align: Side on which its texts are aligned.
        wraps: Whether a terminal may break its texts into lines.
        over: The upper of two headings, which neighbours share, such as ``paper``.
        under: The lower of two headings, below ``over``.
    """

    heading: str
    align: Literal["left", "right"] = "left"
    wraps: bool = False
    over: str = ""
    under: str = ""


@dataclass(frozen=True, slots=True)
class TextGrid:
    """A table.

    Attributes:
        columns: Its columns.
        lines: Its lines, a cell for each column.
        title: A heading over the table; empty where the text around it says what it is.
        group: What its lines have in common, where LaTeX prints several tables as one.
        notes: Sentences below it.
    """

    columns: tuple[TextColumn, ...]
    lines: tuple[tuple[TextCell, ...], ...]
    title: str = ""
    group: str = ""
    notes: tuple[str, ...] = ()


def make_cells(*texts: str) -> tuple[TextCell, ...]:
    """A line of cells without marks."""
    return tuple(map(TextCell, texts))


@dataclass(frozen=True, slots=True)
class Column(Generic[Of]):
    """A column, such as a statistic of a row under a metric, or a setting of a search's trial.

    Attributes:
        key: Its name for programs: the heading in a CSV file.
        value: The number or word for programs, ``None`` where there is none; without it, people
            alone get the column.
        heading: Its heading for people.
        text: The text for people; without it, programs alone get the column.
        places: Tables for people that have the column.
        align: Side on which people's texts are aligned.
        wraps: Whether a terminal may break the texts into lines.
        note: A sentence that explains the column below the table; empty where the captions explain
            it.
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
        """The column in a table of text."""
        return TextColumn(self.heading, self.align, self.wraps)

    def print(self, thing: Of) -> str:
        """The text for people, of a column that has one."""
        return self.text(thing) if self.text else ""


def columns_csv(
    columns: Iterable[Column[Of]], things: Iterable[Of], text: Callable[[Value], object]
) -> str:
    """A CSV file: a line for each thing.

    Args:
        columns: Those without a ``value`` are left out.
        things: What the columns are of.
        text: Prints a value.
    """
    known = [(column.key, column.value) for column in columns if column.value is not None]
    return csv_text(
        [key for key, _ in known], ([text(value(thing)) for _, value in known] for thing in things)
    )


def csv_text(headings: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    """A CSV file of some lines."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([headings, *lines])
    return text.getvalue()
