"""What a section of a report is: one analysis, in one file of ``sections/``, that shows a card or says why it has none.

The report is the ordered list ``sweeps.core.report.sections.SECTIONS``. The page, Markdown, LaTeX,
the terminal and the archive loop over it.
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
    """What sections are made from.

    Attributes:
        study: The study as it stands.
        analysis: Its numbers.
        table: Its table.
        faults: Gets a sentence for each file of a run folder that cannot be read, while cards are
            made and drawn.
    """

    study: StudyRecord
    analysis: StudyAnalysis
    table: StudyTable
    faults: list[str] = field(default_factory=list)

    @cached_property
    def curves(self) -> Curves:
        """The run folders of the rows that curves show, read once."""
        curves = read_curves(self.study)
        self.faults.extend(curves.faults)
        return curves


@dataclass(frozen=True, slots=True)
class Card:
    """What a section shows.

    Attributes:
        caption: What a reader must know to read the figure.
        draw: Draws the figure as SVG; ``None`` where the section has none.
        grids: Tables of text.
        notes: Sentences below, such as what was left out.
        content: Makes what the section's own template shows.
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
        name: Its id in the page, and the name of its figure in the archive.
        title: Its heading.
        show: Makes the card, or says why there is none: a phrase without a full stop.
        template: The page's template of the section.
        text: Where Markdown, LaTeX and the terminal print its grids: after the rows, in an
            ``appendix`` that Markdown alone has, or nowhere, since the table has them already.
    """

    name: str
    title: str
    show: Callable[[Source], Card | str]
    template: str = "figure.html.j2"
    text: Literal["body", "appendix", ""] = ""


@dataclass(frozen=True, slots=True)
class Cards:
    """The sections that a study has, in order, and the reasons of the others.

    Attributes:
        shown: Sections with their cards.
        absent: Titles with the reason, as sentences.
    """

    shown: tuple[tuple[Section, Card], ...]
    absent: tuple[str, ...]

    def grids(self, text: Literal["body", "appendix"]) -> tuple[TextGrid, ...]:
        """The tables that the text forms print in a place."""
        return tuple(
            grid for section, card in self.shown if section.text == text for grid in card.grids
        )


@dataclass(frozen=True, slots=True)
class ReportForms:
    """A study's report: what every form is made from, and the text forms.

    Attributes:
        terminal: The table with all it says, for a terminal of 120 columns.
        markdown: ``table.md``.
        latex: ``table.tex``.
    """

    source: Source
    cards: Cards
    verdict: Verdict
    terminal: str
    markdown: str
    latex: str
