"""Make and write the report of a study, and the archive for reviewers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sweeps.core.findings.analysis import analyse
from sweeps.core.findings.exit_status import ExitCode
from sweeps.core.findings.looks import needed_trials
from sweeps.core.findings.verdict import judge
from sweeps.core.report.bundle import bundle_files, write_zip
from sweeps.core.report.columns import COLUMNS, StatisticColumn
from sweeps.core.report.latex import latex
from sweeps.core.report.markdown import markdown
from sweeps.core.report.page import page
from sweeps.core.report.section import Card, Cards, ReportForms, Section, Source
from sweeps.core.report.sections import SECTIONS
from sweeps.core.report.table import study_table, table_csv
from sweeps.core.report.terminal import terminal
from sweeps.core.store.study_record import StudyRecord, read_study_record
from toco.files import write_text

PAGE = "report.html"


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """Files of the report of a study or a search.

    Attributes:
        text: The report for a terminal of 120 columns, with the parts that the page lacks.
        note: The report in Markdown, which MLflow shows as the description.
        page: Path of ``report.html``.
        files: The tables and the page, which is the last. Files that the page loads are not listed.
        exit_code: 4 if a trial has no result, else 3 if a claim is contradicted, else 0.
    """

    text: str
    note: str
    page: Path
    files: tuple[Path, ...]
    exit_code: ExitCode


def make_report(
    study: StudyRecord,
    *,
    columns: tuple[StatisticColumn, ...] = COLUMNS,
    sections: tuple[Section, ...] = SECTIONS,
) -> ReportForms:
    """Analyse a study in its current state, and compare it with the paper.

    Args:
        study: The study, finished or not.
        columns: Statistics to print.
        sections: Sections in the order of the page.
    """
    study = needed_trials(study)
    analysis = analyse(study)
    verdict = judge(study, analysis)
    table = study_table(study, analysis, verdict, columns)
    source = Source(study, analysis, table)
    answers = [(section, section.show(source)) for section in sections]
    cards = Cards(
        tuple((section, card) for section, card in answers if isinstance(card, Card)),
        tuple(
            f"{section.title}: {reason}."
            for section, reason in answers
            if isinstance(reason, str) and reason
        ),
    )
    body, appendix = cards.grids("body"), cards.grids("appendix")
    texts = terminal(table, body), markdown(table, body, appendix), latex(table, body)
    return ReportForms(source, cards, verdict, *texts)


def write_report(study_dir: Path) -> WrittenReport:
    """Write ``table.md``, ``table.csv``, ``table.tex`` and the page of a study.

    Args:
        study_dir: Folder of the study, finished or not.

    Raises:
        ValueError: ``study_dir`` is not the folder of a study.
    """
    return write_files(make_report(read_study_record(study_dir)), study_dir)


def write_files(report: ReportForms, folder: Path) -> WrittenReport:
    """Write the files of a report into a folder."""
    written = page(report.source, report.cards, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    # The files that the page loads are written before the page.
    _write(folder, written.details)
    _drop_details(folder, written.details)
    tables = {
        "table.md": report.markdown,
        "table.csv": table_csv(report.source.table),
        "table.tex": report.latex,
    }
    _write(folder, tables | {PAGE: written.html})
    files = tuple(folder / name for name in (*tables, PAGE))
    text = "\n".join(
        [report.terminal, *(f"Left out of the page: {remark}" for remark in written.remarks)]
    )
    return WrittenReport(text, tables["table.md"], folder / PAGE, files, report.verdict.exit_code)


def report_text(study: StudyRecord) -> tuple[str, ExitCode]:
    """Make the report for a terminal, with the exit status. It writes nothing."""
    report = make_report(study)
    return report.terminal, report.verdict.exit_code


def write_bundle(study_dir: Path, target: Path) -> Path:
    """Write the archive for reviewers to ``target``, a zip file, and return its path.

    Raises:
        ValueError: ``study_dir`` is not the folder of a study.
    """
    study = read_study_record(study_dir)
    write_zip(target, study.name, bundle_files(make_report(study)))
    return target


def _write(folder: Path, contents: Mapping[str, str]) -> None:
    for name, content in contents.items():
        write_text(folder / name, content)


def _drop_details(folder: Path, details: Mapping[str, str]) -> None:
    for path in (folder / "details").glob("*.js"):
        if f"details/{path.name}" not in details:
            path.unlink(missing_ok=True)
