"""Sections of a report: each is one analysis, in a file of ``sections/``.

A section gives a card, or the reason why it has none.

``sweeps.core.report.sections.SECTIONS`` lists the sections in their order. The page, Markdown,
LaTeX, the terminal and the archive loop over it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from sweeps.core.findings.analysis import StudyAnalysis
from sweeps.core.findings.verdict import Verdict
from sweeps.core.report.curves import Curves, read_curves
from sweeps.core.report.table import StudyTable
from sweeps.core.report.text_grid import TextGrid
from sweeps.core.store.study_record import StudyRecord


@dataclass(frozen=True)
class Source:
    """Input of the sections.

    Attributes:
        study: The study in its current state.
        analysis: Numbers of the study.
        table: Table of the study.
        faults: Receives a sentence for each unreadable file of a run folder, while cards are made
            and drawn.
    """

    study: StudyRecord
    analysis: StudyAnalysis
    table: StudyTable
    faults: list[str] = field(default_factory=list)

    @cached_property
    def curves(self) -> Curves:
        """Curves from the run folders of the plotted rows, read once."""
        curves = read_curves(self.study)
        self.faults.extend(curves.faults)
        return curves


def common_seeds(source: Source) -> str:
    """Return the sentence on the common seeds, to which a sequential study limits a section."""
    if source.study.sequential is None:
        return ""
    number = source.analysis.looks.common
    seeds = "seed is" if number == 1 else f"{number} seeds are"
    return f" Only the first {seeds} used, which all rows but the A/A row have."


@dataclass(frozen=True, slots=True)
class Card:
    """Content of a section.

    Attributes:
        caption: Explanation of the figure.
        draw: Function that draws the figure as SVG; ``None`` if the section has none.
        grids: Tables of text.
        notes: Sentences below the figure, such as parts that were left out.
        content: Function that computes the values for the section's own template.
    """

    caption: str = ""
    draw: Callable[[], str] | None = None
    grids: tuple[TextGrid, ...] = ()
    notes: tuple[str, ...] = ()
    content: Callable[[], Any] | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the report.

    Attributes:
        name: HTML id in the page, and name of the figure in the archive.
        title: Heading.
        show: Function that makes the card, or returns the reason why there is none: a phrase
            without a full stop, or empty if the section does not concern such a study.
        template: HTML template of the section.
        text: Place of the section's grids in the text formats. ``body`` is after the rows, in all
            of them; ``appendix`` is in Markdown only. Empty means nowhere: the section has no
            grids, or the table has their numbers already.
    """

    name: str
    title: str
    show: Callable[[Source], Card | str]
    template: str = "figure.html.j2"
    text: Literal["body", "appendix", ""] = ""


@dataclass(frozen=True, slots=True)
class Cards:
    """Cards of the sections that apply, and reasons of the others.

    Attributes:
        sections: Sections with their cards.
        absent: Titles of the other sections with the reason, as sentences.
    """

    sections: tuple[tuple[Section, Card], ...]
    absent: tuple[str, ...]

    def grids(self, text: Literal["body", "appendix"]) -> tuple[TextGrid, ...]:
        """Return the tables that the text formats print in one place."""
        return tuple(
            grid for section, card in self.sections if section.text == text for grid in card.grids
        )


@dataclass(frozen=True, slots=True)
class ReportForms:
    """A study's report: the input of every format, and the finished text formats.

    Attributes:
        source: Input of the sections.
        cards: Cards of the sections.
        verdict: Comparison with the paper.
        terminal: The report for a terminal of 120 columns.
        markdown: Content of ``table.md``.
        latex: Content of ``table.tex``.
    """

    source: Source
    cards: Cards
    verdict: Verdict
    terminal: str
    markdown: str
    latex: str
