"""A column of a report: what it prints of a thing, for people and for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from sweeps.core.report.text_grid import TextColumn

Of = TypeVar("Of")
Value = float | str | bool | None

Place = Literal["values", "differences"]
"""A table for people: of what a row has, or of how it differs from the row it is compared with."""


@dataclass(frozen=True, slots=True)
class Column(Generic[Of]):
    """A column, such as a statistic of a row under a metric, or a setting of a search's trial.

    Attributes:
        key: Its name for programs: the heading in a CSV file.
        value: The number or word for programs, ``None`` where there is none; without it, people alone get the column.
        heading: Its heading for people.
        text: The text for people; without it, programs alone get the column.
        places: Tables for people that have the column.
        align: Side on which people's texts are aligned.
        wraps: Whether a terminal may break the texts into lines.
        note: A sentence that explains the column below the table; empty where the captions explain it.
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


def columns_csv(columns: Iterable[Column[Of]], things: Iterable[Of], text: Callable[[Value], object]) -> str:
    """A CSV file: a line for each thing.

    Args:
        columns: Those without a ``value`` are left out.
        things: What the columns are of.
        text: Prints a value.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    known = [(column.key, column.value) for column in columns if column.value is not None]
    writer.writerow([key for key, _ in known])
    for thing in things:
        writer.writerow([text(value(thing)) for _, value in known])
    return buffer.getvalue()
