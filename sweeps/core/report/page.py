"""The report as one page that needs nothing but a browser, and is the dashboard while the study runs.

The page holds the sections of the report. What opens under a row (its seeds, what its config has different, the end of
its logs) is data that a small script shows. Of more than ``INLINE_TRIALS`` trials it lies in files beside the page,
which are loaded as scripts: that works from a disk and a bucket, too, where fetching does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sweeps.core.findings.analysis import StudyAnalysis
from sweeps.core.plan.forecast import duration
from sweeps.core.report import summary
from sweeps.core.report.markup import REFRESH_S, policy, safe_json, safe_svg, templates
from sweeps.core.report.row_details import difference_columns, row_details, value_columns
from sweeps.core.report.section import Card, Cards, Section, Source
from sweeps.core.report.table import NOT_VOC, TableBlock, TableRow
from sweeps.core.store.study_record import State, StudyRecord

INLINE_TRIALS = 2000
"""Details of up to so many trials are in the page itself."""
ROWS_PER_PAGE = 200
ROWS_PER_FILE = 100
MAX_FOOTNOTES = 50
MAX_FAULTS = 5
_STATES: tuple[State, ...] = ("finished", "running", "failed", "diverged", "waiting")


@dataclass(frozen=True, slots=True)
class Page:
    """The page.

    Attributes:
        html: The page itself.
        details: The files beside it by relative name; there are none for a small study.
        remarks: Which pictures and curves are left out since their files are missing or damaged, in sentences.
    """

    html: str
    details: Mapping[str, str]
    remarks: tuple[str, ...]


def page(source: Source, cards: Cards, written: str) -> Page:
    """The page of a study as it stands, which may be unfinished.

    Args:
        source: The study with its numbers: what the page prints is what the other forms print.
        cards: The sections, which are drawn now.
        written: When, for the reader of a page that is still being written.
    """
    study, table = source.study, source.table
    is_small = len(study.trials) <= INLINE_TRIALS
    details = row_details(study, table, logs=is_small)
    script = templates().get_template("script.html.j2").render()
    counts = Counter(trial.state for trial in study.trials)
    # Drawing finds the files that cannot be read.
    parts = [_part(section, card) for section, card in cards.shown]
    remarks = _remarks(study, source.faults)
    html = (
        templates()
        .get_template("report.html.j2")
        .render(
            study=study,
            table=table,
            parts=parts,
            absent=cards.absent,
            blocks=[_block(source.analysis, block) for block in table.blocks],
            num_rows=len(study.rows),
            total=len(study.trials),
            counts=[(state, counts[state]) for state in _STATES if counts[state]],
            unfinished=counts["finished"] < len(study.trials),
            failures=summary.failures(study),
            running=summary.running(study),
            eta=None if study.eta_s is None else duration(study.eta_s),
            refresh_s=REFRESH_S if study.running else None,
            not_voc=NOT_VOC if NOT_VOC in table.captions else None,
            captions=[caption for caption in table.captions if caption != NOT_VOC],
            max_footnotes=MAX_FOOTNOTES,
            remarks=remarks,
            forecast=summary.forecast(study),
            facts=summary.facts(study),
            config=summary.shared_config(study),
            title=table.title,
            written=written,
            policy=policy(script),
            script=Markup(script),  # noqa: S704 - our own
            data=safe_json(
                {
                    "name": f"{study.name}-{study.digest[:8]}",
                    "running": study.running,
                    "refreshAfterS": REFRESH_S,
                    "rowsPerPage": ROWS_PER_PAGE,
                    "rowsPerFile": ROWS_PER_FILE,
                    "written": re.sub(r"\W", "", written),
                    "metrics": [[metric.title, metric.higher_is_better] for metric in table.metrics],
                    "valueHeadings": [column.heading for column in value_columns(table)],
                    "differenceHeadings": [column.heading for column in difference_columns(table)],
                }
            ),
            details=safe_json(details if is_small else {}),
        )
    )
    return Page(html, {} if is_small else _files(details), remarks)


def _part(section: Section, card: Card) -> dict[str, Any]:
    """A section as its template reads it."""
    return {
        "section": section,
        "card": card,
        "figure": None if card.draw is None else safe_svg(card.draw()),
        "content": None if card.content is None else card.content(),
    }


def _remarks(study: StudyRecord, faults: Iterable[str]) -> tuple[str, ...]:
    """The first of some faults, with files by their names in the storage, and how many more there are."""
    distinct = list(dict.fromkeys(fault.replace(f"{study.path.parent}/", "") for fault in faults))
    more = [f"And {len(distinct) - MAX_FAULTS} more files."] if len(distinct) > MAX_FAULTS else []
    return (*distinct[:MAX_FAULTS], *more)


def _block(analysis: StudyAnalysis, block: TableBlock) -> dict[str, Any]:
    """A block with its rows as markup: those of the first page, and the others as data."""
    row_markup = templates().get_template("rows.html.j2").module.row  # type: ignore[attr-defined]
    rows = [str(row_markup(row, block, _unfinished(analysis, row))) for row in block.rows]
    rest = None
    if len(rows) > ROWS_PER_PAGE:
        summaries = [[measurement.figures.summary for measurement in row.measurements] for row in block.rows]
        means = [[None if summary is None else round(summary.mean, 6) for summary in row] for row in summaries]
        rest = safe_json({"rows": rows[ROWS_PER_PAGE:], "means": means})
    first = Markup("".join(rows[:ROWS_PER_PAGE]))  # noqa: S704
    return {"block": block, "rows": first, "shown": ROWS_PER_PAGE, "count": len(rows), "rest": rest}


def _unfinished(analysis: StudyAnalysis, row: TableRow) -> list[tuple[str, int]]:
    states = analysis.rows[row.number].states
    return [(state, states[state]) for state in ("running", "failed", "diverged") if states.get(state)]


def _files(details: Mapping[int, Mapping[str, Any]]) -> dict[str, str]:
    """The details as scripts, ``ROWS_PER_FILE`` rows each, that hand them to the page's own script."""
    parts: dict[int, dict[int, Mapping[str, Any]]] = {}
    for number in sorted(details):
        parts.setdefault(number // ROWS_PER_FILE, {})[number] = details[number]
    return {f"details/{part:04d}.js": f"tocoDetails({part},{safe_json(content)});\n" for part, content in parts.items()}
