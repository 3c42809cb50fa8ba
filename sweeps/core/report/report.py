"""The report of a study: its numbers, its table, its sections, and the text forms of all of them."""

from __future__ import annotations

from dataclasses import dataclass

from sweeps.core.findings.analysis import analyse
from sweeps.core.findings.verdict import Verdict, judge
from sweeps.core.report.columns import COLUMNS, StatisticColumn
from sweeps.core.report.latex import latex
from sweeps.core.report.markdown import markdown
from sweeps.core.report.section import Card, Cards, Section, Source
from sweeps.core.report.sections import SECTIONS
from sweeps.core.report.table import study_table
from sweeps.core.report.terminal import terminal
from sweeps.core.store.study_record import StudyRecord


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
    table = study_table(study, analysis, verdict, columns)
    source = Source(study, analysis, table)
    answers = [(section, section.show(source)) for section in sections]
    cards = Cards(
        tuple((section, card) for section, card in answers if isinstance(card, Card)),
        tuple(f"{section.title}: {reason}." for section, reason in answers if isinstance(reason, str)),
    )
    body, appendix = cards.grids("body"), cards.grids("appendix")
    texts = terminal(table, body), markdown(table, body, appendix), latex(table, body)
    return ReportForms(source, cards, verdict, *texts)
