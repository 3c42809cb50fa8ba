"""Report as one HTML page; it is the dashboard while the study runs.

The page needs nothing but a browser. It holds the sections of the report. Data for the details of a
row (its seeds, the differences of its config, the end of its logs) is shown by a small script. With
more than ``INLINE_TRIALS`` trials, this data lies in files beside the page, which the page loads as
scripts. Scripts load from a bucket, and from a local disk, too, where browsers refuse fetch.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sweeps.core.design.study import Cell, PlannedRow
from sweeps.core.findings.analysis import StudyAnalysis
from sweeps.core.plan.forecast import duration, scorecard
from sweeps.core.report.columns import StatisticColumn, columns_of
from sweeps.core.report.markup import REFRESH_S, policy, safe_json, safe_svg, templates
from sweeps.core.report.numbers import format_value
from sweeps.core.report.section import Card, Cards, Section, Source
from sweeps.core.report.table import NOT_VOC, StudyTable, TableBlock, TableRow
from sweeps.core.store.study_record import State, StudyRecord, TrialRecord
from toco.config import flatten
from toco.passwords import public_text
from toco.room import size
from toco.train.records import METRICS, read_row

INLINE_TRIALS = 2000
"""Largest number of trials whose details are stored in the page itself.

A choice: the page grows with every trial, and a larger one opens slowly.
"""
ROWS_PER_PAGE = 200
"""Rows of a block that are drawn at once: a browser takes long to lay thousands out."""
ROWS_PER_FILE = 100
"""Rows whose details share a file: few files, and each loads quickly."""
MAX_FOOTNOTES = 50
"""Largest number of footnotes below the table: nobody reads a longer list."""
MAX_FAULTS, MAX_FAILURES, MAX_RUNNING = 5, 20, 50
"""Largest numbers of unreadable files, groups of failures and running trials on the page.

A cause shared by many trials, such as a lost disk, must not push the table off the screen.
"""
LOG_LINES = 6
"""Number of rows of metrics that the end of a log shows."""
NEVER_SHARED = frozenset({"seed"})
"""Settings that differ between the trials of a row."""
_OF_THE_ROW = frozenset({"row", "versus"})
"""Columns that name the compared rows, which the heading names already."""
_STATES: tuple[State, ...] = ("finished", "running", "failed", "diverged", "waiting")


@dataclass(frozen=True, slots=True)
class Page:
    """The page with its files.

    Attributes:
        html: The page itself.
        details: Files beside the page, by relative name; empty for a small study.
        remarks: Sentences about pictures and curves that are left out because their files are
            missing or damaged.
    """

    html: str
    details: Mapping[str, str]
    remarks: tuple[str, ...]


def page(source: Source, cards: Cards, written: str) -> Page:
    """Make the page of a study in its current state, finished or not.

    Args:
        source: The study with its numbers, which all formats share.
        cards: The sections; their figures are drawn by this call.
        written: Time of writing, for readers of a page that is still updated.
    """
    # Data for the script.
    study, table = source.study, source.table
    is_small = len(study.trials) <= INLINE_TRIALS
    details = _row_details(study, table, logs=is_small)
    script = templates().get_template("script.html.j2").render()
    counts = Counter(trial.state for trial in study.trials)
    # Drawing adds to source.faults, so the remarks come after it.
    parts = [_part(section, card) for section, card in cards.sections]
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
            failures=_failures(study),
            running=_running(study),
            eta=None if study.eta_s is None else duration(study.eta_s),
            refresh_s=REFRESH_S if study.running else None,
            not_voc=NOT_VOC if NOT_VOC in table.captions else None,
            captions=[caption for caption in table.captions if caption not in _notices(study)],
            max_footnotes=MAX_FOOTNOTES,
            remarks=remarks,
            forecast=_forecast(study),
            facts=_facts(study),
            config=_shared_config(study),
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
                    "metrics": [
                        [metric.title, metric.higher_is_better] for metric in table.metrics
                    ],
                    "valueHeadings": [
                        column.heading for column in columns_of("values", table.columns)
                    ],
                    "differenceHeadings": [column.heading for column in _difference_columns(table)],
                }
            ),
            details=safe_json(details if is_small else {}),
        )
    )
    return Page(html, {} if is_small else _files(details), remarks)


def _notices(study: StudyRecord) -> tuple[str, ...]:
    """Return the captions that the page highlights above the table."""
    return (NOT_VOC,) if study.source is None else (NOT_VOC, *study.notes[:1])


def _part(section: Section, card: Card) -> dict[str, Any]:
    """Make the input of a section's template."""
    return {
        "section": section,
        "card": card,
        "figure": None if card.draw is None else safe_svg(card.draw()),
        "content": None if card.content is None else card.content(),
    }


def _remarks(study: StudyRecord, faults: Iterable[str]) -> tuple[str, ...]:
    """List the first faults, and count the others.

    Paths are relative to the storage.
    """
    distinct = list(dict.fromkeys(fault.replace(f"{study.path.parent}/", "") for fault in faults))
    more = [f"And {len(distinct) - MAX_FAULTS} more."] if len(distinct) > MAX_FAULTS else []
    return (*distinct[:MAX_FAULTS], *more)


def _block(analysis: StudyAnalysis, block: TableBlock) -> dict[str, Any]:
    """Make a block with its rows.

    The first page of rows is markup, the others are data.
    """
    row_markup = templates().get_template("rows.html.j2").module.row  # type: ignore[attr-defined]
    rows = [str(row_markup(row, block, _unfinished(analysis, row))) for row in block.rows]
    later_rows = None
    if len(rows) > ROWS_PER_PAGE:
        summaries = [
            [measurement.figures.summary for measurement in row.measurements] for row in block.rows
        ]
        means = [
            [None if summary is None else round(summary.mean, 6) for summary in row]
            for row in summaries
        ]
        later_rows = safe_json({"rows": rows[ROWS_PER_PAGE:], "means": means})
    first = Markup("".join(rows[:ROWS_PER_PAGE]))  # noqa: S704
    return {
        "block": block,
        "rows": first,
        "shown": ROWS_PER_PAGE,
        "count": len(rows),
        "rest": later_rows,
    }


def _unfinished(analysis: StudyAnalysis, row: TableRow) -> list[tuple[str, int]]:
    states = analysis.rows[row.planned.number].states
    return [
        (state, states[state]) for state in ("running", "failed", "diverged") if states.get(state)
    ]


def _files(details: Mapping[int, Mapping[str, Any]]) -> dict[str, str]:
    """Make scripts that pass the details to the page's script, ``ROWS_PER_FILE`` rows each."""
    parts: dict[int, dict[int, Mapping[str, Any]]] = {}
    for number in sorted(details):
        parts.setdefault(number // ROWS_PER_FILE, {})[number] = details[number]
    return {
        f"details/{part:04d}.js": f"tocoDetails({part},{safe_json(content)});\n"
        for part, content in parts.items()
    }


def _failures(study: StudyRecord) -> list[dict[str, Any]]:
    """Group the failed and diverged trials by the last line of their message."""
    groups: dict[tuple[str, str], list[tuple[Cell, TrialRecord]]] = {}
    for cell, trials in zip(study.cells, study.trials_by_cell, strict=True):
        for trial in trials:
            if trial.state in ("failed", "diverged"):
                last = (trial.message or "no message").strip().rpartition("\n")[2]
                groups.setdefault((trial.state, last), []).append((cell, trial))
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [
        {
            "state": state,
            "last": last,
            "count": len(members),
            "names": [f"{cell.label}, seed {trial.seed}" for cell, trial in members[:5]],
            "attempts": max(trial.attempts for _, trial in members),
            "message": members[0][1].message or "",
        }
        for (state, last), members in ordered[:MAX_FAILURES]
    ]


def _running(study: StudyRecord) -> list[tuple[str, int, int | None]]:
    """List the running trials: name, step, planned steps (of the first trial that has ended)."""
    steps = next(
        (trial.entry.config.get("num_steps") for trial in study.trials if trial.entry), None
    )
    running_trials = [
        (f"{cell.label}, seed {trial.seed}", trial.step, steps)
        for cell, trials in zip(study.cells, study.trials_by_cell, strict=True)
        for trial in trials
        if trial.state == "running"
    ]
    return running_trials[:MAX_RUNNING]


def _forecast(study: StudyRecord) -> tuple[str, ...]:
    """Compare the forecast with the measured times, as sentences."""
    if study.forecast is None:
        return ()
    # The forecast did not include trainings of other studies.
    entries = [
        trial.entry
        for trial in study.trials
        if trial.entry and trial.entry.origin.study == study.name
    ]
    return scorecard(study.forecast, entries, None)


def _facts(study: StudyRecord) -> list[tuple[str, str]]:
    """List recipe, data, versions, hardware and cost; all values if trials differ."""
    # What produced the results: commits, versions, data.
    entries = [trial.entry for trial in study.trials if trial.entry]
    provenance = [entry.provenance for entry in entries if entry.provenance]
    finished = sum(trial.counts for trial in study.trials)
    commits = (
        "unknown (not in a git checkout)"
        if commit is None
        else commit + (" with uncommitted changes" if dirty else "")
        for commit, dirty in dict.fromkeys((p.get("commit"), p.get("dirty")) for p in provenance)
    )
    versions = (
        ", ".join(f"{name} {v}" for name, v in p.get("versions", {}).items()) for p in provenance
    )
    manifests = (
        ", ".join(f"{split} {v[:16]}" for split, v in p.get("data_manifest", {}).items())
        for p in provenance
    )
    # What the results cost.
    times = [entry.wall_time_s for entry in entries if entry.wall_time_s is not None]
    time = (
        f"{duration(sum(times))} in all trials together, {duration(max(times))} the longest"
        if times
        else ""
    )
    memory = max((entry.peak_memory_bytes or 0 for entry in entries), default=0)
    facts = [
        ("Source", study.source or ""),
        ("Recipe", study.recipe),
        ("Data", study.data),
        (
            "Design",
            f"{study.design}, "
            f"for {'effects of a size' if study.purpose == 'effect' else 'direction'}",
        ),
        (
            "Changed from the recipe",
            ", ".join(f"{path} = {value}" for path, value in study.changes.items())
            or ("" if study.source else "nothing"),
        ),
        ("Seeds", _seeds_text(study)),
        ("Trials", f"{finished} of {len(study.trials)} finished"),
        ("Study digest", study.digest),
        ("Commit", _distinct(commits)),
        ("Versions", _distinct(versions)),
        # ``if p``: of an empty provenance this would say "None, None".
        ("Hardware", _distinct(f"{p.get('device')}, {p.get('platform')}" for p in provenance if p)),
        (
            "Weights (sha256)",
            _distinct(p.get("weights_sha256") or "none from a file" for p in provenance),
        ),
        ("Data manifest (sha256)", _distinct(manifests)),
        ("Time", time),
        ("Peak memory", f"{size(memory)} in one trial" if memory else ""),
        ("Failed attempts", str(sum(trial.attempts for trial in study.trials) or "")),
    ]
    return [(name, value) for name, value in facts if value]


def _seeds_text(study: StudyRecord) -> str:
    if study.sequential is None:
        return ", ".join(map(str, study.seeds))
    after = ", ".join(map(str, study.sequential.looks))
    return f"{study.seeds[0]} to {study.seeds[-1]} at most, claims are tested after {after} seeds"


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value))


def _shared_config(study: StudyRecord) -> list[tuple[str, str]]:
    """List the fields of the first trained config.

    Fields that the study varies read ``varies``.
    """
    entry = next((trial.entry for trial in study.trials if trial.entry), None)
    varied = {path for cell in study.cells for path in cell.changes} | NEVER_SHARED
    leaves = {} if entry is None else flatten(entry.config)
    return [
        (path, "varies" if path in varied else public_text(json.dumps(leaves[path])))
        for path in leaves
    ]


def _row_details(study: StudyRecord, table: StudyTable, logs: bool) -> dict[int, dict[str, Any]]:
    """Collect the details of every row, by row number.

    Args:
        study: The study.
        table: Table of the study.
        logs: Whether to read the end of the log of every trial. Otherwise only the logs of running,
            failed and diverged trials are read.
    """
    # Most rows have the same base; its config is flattened once.
    numbers = {row.versus for row in study.rows if row.versus is not None}
    bases = {number: _resolved(study, study.rows[number]) for number in numbers}
    cells = [
        [_trial(study, table, trial, logs) for trial in trials] for trials in study.trials_by_cell
    ]
    values, differences = columns_of("values", table.columns), _difference_columns(table)
    return {
        row.planned.number: {
            "versus": row.versus,
            "remarks": [table.footnotes[number - 1] for number in row.footnotes],
            "values": [
                [column.print(measurement) for column in values] for measurement in row.measurements
            ],
            "differences": [
                [column.print(measurement) for column in differences]
                for measurement in row.comparisons
            ],
            "config": _changes(study, row.planned, bases),
            "trials": cells[row.planned.cell],
        }
        for block in table.blocks
        for row in block.rows
    }


def _difference_columns(table: StudyTable) -> tuple[StatisticColumn, ...]:
    """Return the statistics of the difference from the base row."""
    return tuple(
        column
        for column in columns_of("differences", table.columns)
        if column.key not in _OF_THE_ROW
    )


def _trial(study: StudyRecord, table: StudyTable, trial: TrialRecord, logs: bool) -> list[Any]:
    wall, memory = (
        (trial.entry.wall_time_s, trial.entry.peak_memory_bytes) if trial.entry else (None, None)
    )
    values = [(trial.value(metric.key), metric) for metric in table.metrics]
    return [
        trial.key,
        trial.seed,
        trial.state,
        trial.step,
        trial.attempts,
        "-" if wall is None else duration(wall),
        "-" if not memory else size(memory),
        [
            "-" if value is None else format_value(value, percent=metric.percent)
            for value, metric in values
        ],
        trial.message,
        read_log_tail(trial.run_dir)
        if logs or trial.state in ("running", "failed", "diverged")
        else [],
        study.mlflow.trial(trial.key) if study.mlflow else None,
    ]


def read_log_tail(run_dir: Path) -> list[str]:
    """Read the last rows of a run's metrics, one line each.

    The result is empty if the run has no such file.
    """
    try:
        with (run_dir / METRICS).open("rb") as file:
            # 2048 bytes hold a row of any usual run; a row that is cut off is left out.
            file.seek(max(file.seek(0, 2) - LOG_LINES * 2048, 0))
            lines = file.read().splitlines()[-LOG_LINES:]
    except OSError:
        return []
    return [text for line in lines if (text := _log_line(line))]


def _log_line(line: bytes) -> str | None:
    row = read_row(line)
    if row is None:
        return None  # damaged, or cut off by a crash or by the start of reading
    try:
        values = [
            f"{key.partition('/')[2]} {value:.4g}"
            for key, value in row["values"].items()
            if value is not None
        ]
        return f"{row['kind']} after step {row['step']}, {row['time_s']:.0f} s: {', '.join(values)}"
    except (ValueError, TypeError):
        return None


def _changes(
    study: StudyRecord, row: PlannedRow, bases: Mapping[int, Mapping[str, Any]]
) -> list[list[str]]:
    """List the fields that differ from the base row; without a base row, from the recipe.

    Each is a list of path, value in the base or in the recipe, value in the row.
    """
    config, base_config = _resolved(study, row), {} if row.versus is None else bases[row.versus]
    absent = "no such field"
    if not config or not base_config:
        absent = "as the recipe has it"
        config = study.changes_of(row)
        base_config = {} if row.versus is None else study.changes_of(study.rows[row.versus])
    return [
        [path, _value_text(base_config, path, absent), _value_text(config, path, absent)]
        for path in {**base_config, **config}
        if path not in NEVER_SHARED
        and (path not in base_config or path not in config or base_config[path] != config[path])
    ]


def _value_text(config: Mapping[str, Any], path: str, absent: str) -> str:
    """Return the value of a config's field as JSON, without passwords; ``absent`` without one."""
    return public_text(json.dumps(config[path])) if path in config else absent


def _resolved(study: StudyRecord, row: PlannedRow) -> Mapping[str, Any]:
    """Return the fields of the row's first trained config; empty if none was trained."""
    return next((flatten(trial.entry.config) for trial in study.trials_of(row) if trial.entry), {})
