"""What opens under a row of the page: its seeds, its statistics, what its config has different, the end of its logs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.core.design.study import PlannedRow
from sweeps.core.plan.forecast import duration
from sweeps.core.report.columns import StatisticColumn, columns_of
from sweeps.core.report.numbers import format_value
from sweeps.core.report.table import StudyTable
from sweeps.core.store.study_record import StudyRecord, TrialRecord
from toco.config import flatten
from toco.passwords import public_text
from toco.room import size
from toco.train.records import METRICS, read_row

LOG_LINES = 6
"""Rows of metrics that a log's end shows."""
NEVER_SHARED = frozenset({"seed"})
"""Fields that differ between the trials of a row."""
_OF_THE_ROW = frozenset({"row", "versus"})
"""Columns that say which rows are compared, which the heading above says."""


def row_details(study: StudyRecord, table: StudyTable, logs: bool) -> dict[int, dict[str, Any]]:
    """Collect what opens under every row, by its number.

    Args:
        study: The study.
        table: Its table.
        logs: Read the end of every trial's log; of a large study only of those that are not finished.
    """
    # Most rows have the same base, whose config is flattened once.
    numbers = {row.versus for row in study.rows if row.versus is not None}
    bases = {number: _resolved(study, study.rows[number]) for number in numbers}
    cells = [[_trial(study, table, trial, logs) for trial in trials] for trials in study.trials_by_cell]
    values, differences = columns_of("values", table.columns), difference_columns(table)
    return {
        row.number: {
            "versus": row.versus,
            "remarks": [table.footnotes[number - 1] for number in row.footnotes],
            "values": [[column.print(one) for column in values] for one in row.measurements],
            "differences": [[column.print(one) for column in differences] for one in row.comparisons],
            "config": _changes(study, study.rows[row.number], bases),
            "trials": cells[study.rows[row.number].cell],
        }
        for block in table.blocks
        for row in block.rows
    }


def difference_columns(table: StudyTable) -> tuple[StatisticColumn, ...]:
    """The statistics of its differences to the row that it is compared with."""
    return tuple(column for column in columns_of("differences", table.columns) if column.key not in _OF_THE_ROW)


def _trial(study: StudyRecord, table: StudyTable, trial: TrialRecord, logs: bool) -> list[Any]:
    wall, memory = (trial.entry.wall_time_s, trial.entry.peak_memory_bytes) if trial.entry else (None, None)
    values = [(trial.value(metric.key), metric) for metric in table.metrics]
    return [
        trial.key,
        trial.seed,
        trial.state,
        trial.step,
        trial.attempts,
        "-" if wall is None else duration(wall),
        "-" if not memory else size(memory),
        ["-" if value is None else format_value(value, percent=metric.percent) for value, metric in values],
        trial.message,
        read_log_tail(trial.run_dir) if logs or trial.state in ("running", "failed", "diverged") else [],
        study.mlflow.trial(trial.key) if study.mlflow else None,
    ]


def read_log_tail(run_dir: Path) -> list[str]:
    """Read the last rows of a run's metrics, one line each; none where there is no such file."""
    try:
        with (run_dir / METRICS).open("rb") as file:
            file.seek(max(file.seek(0, 2) - LOG_LINES * 2048, 0))
            lines = file.read().splitlines()[-LOG_LINES:]
    except OSError:
        return []
    return [text for line in lines if (text := _log_line(line))]


def _log_line(line: bytes) -> str | None:
    row = read_row(line)
    if row is None:
        return None  # damaged, or cut off by a crash or by where reading began
    try:
        values = [f"{key.partition('/')[2]} {value:.4g}" for key, value in row["values"].items() if value is not None]
        return f"{row['kind']} after step {row['step']}, {row['time_s']:.0f} s: {', '.join(values)}"
    except (ValueError, TypeError):
        return None


def _changes(study: StudyRecord, row: PlannedRow, bases: Mapping[int, Mapping[str, Any]]) -> list[list[str]]:
    """Fields whose values differ from those of the row it is compared with: path, value there, value here."""
    here, there = _resolved(study, row), {} if row.versus is None else bases[row.versus]
    if not here or not there:
        here = study.changes_of(row)
        there = {} if row.versus is None else study.changes_of(study.rows[row.versus])
    return [
        [path, value_text(there, path), value_text(here, path)]
        for path in {**there, **here}
        if path not in NEVER_SHARED and (path not in there or path not in here or there[path] != here[path])
    ]


def value_text(config: Mapping[str, Any], path: str) -> str:
    """The value of a config's leaf as JSON, without passwords in addresses."""
    return public_text(json.dumps(config[path])) if path in config else "as the recipe has it"


def _resolved(study: StudyRecord, row: PlannedRow) -> Mapping[str, Any]:
    """The leaves of the first config that was trained; empty where none was."""
    return next((flatten(trial.entry.config) for trial in study.trials_of(row) if trial.entry), {})
