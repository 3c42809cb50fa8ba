"""A table of text. The terminal, Markdown, LaTeX and the page print every table from this one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
