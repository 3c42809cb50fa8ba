"""The report of a study: its numbers, its table, its sections, and the text forms of all of them."""

from __future__ import annotations

from dataclasses import dataclass

from sweeps.core.findings.analysis import analyse
from sweeps.core.findings.verdict import Verdict, judge
from sweeps.core.report.columns import COLUMNS, StatisticColumn
from sweeps.core.report.latex import latex
from sweeps.core.report.markdown import markdown
from sweeps.core.report.section import Cards, Section, Source, make_cards
from sweeps.core.report.sections import SECTIONS
from sweeps.core.report.study_table import study_table
from sweeps.core.report.terminal import terminal
from sweeps.core.store.study_record import StudyRecord


@dataclass(frozen=True, slots=True)
class ReportForms:
    """A study's report, from which every form is made."""

    source: Source
    cards: Cards
    verdict: Verdict

    @property
    def terminal(self) -> str:
        """The table with all it says, for a terminal of 120 columns."""
        return terminal(self.source.table, self.cards.grids("body"))

    @property
    def markdown(self) -> str:
        """``table.md``."""
        return markdown(self.source.table, self.cards.grids("body"), self.cards.grids("appendix"))

    @property
    def latex(self) -> str:
        """``table.tex``."""
        return latex(self.source.table, self.cards.grids("body"))


def make_report(
    study: StudyRecord,
    *,
    columns: tuple[StatisticColumn, ...] = COLUMNS,
    sections: tuple[Section, ...] = SECTIONS,
) -> ReportForms:
    """Analyse a study as it stands, which may be unfinished, and judge it.

    Args:
        study: The study.
        columns: The statistics to print.
        sections: The sections, in the order of the page.
    """
    analysis = analyse(study)
    verdict = judge(study, analysis)
    source = Source(study, analysis, study_table(study, analysis, verdict, columns))
    return ReportForms(source, make_cards(source, sections), verdict)
