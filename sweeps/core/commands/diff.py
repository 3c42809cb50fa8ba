"""Two states of a study, or two studies, cell by cell: what changed since the table was printed last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from sweeps.core.design.study import Cell, Study
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import Situation, survey
from sweeps.core.report.numbers import format_difference, format_interval
from sweeps.core.statistics.paired import paired
from sweeps.core.store.identity import why
from sweeps.core.store.study_folder import StudyFolder, is_same_state, study_file
from sweeps.core.store.study_record import (
    StudyFile,
    StudyRecord,
    read_study_record,
    values_by_replicate,
    with_results,
)


def print_diff(study: Study, launch: Launch, other: Path | None) -> int:
    """Print how the study differs from ``other``, by default from its state before the last change; returns 0.

    Nothing is written.

    Raises:
        ValueError: There is nothing to compare with.
    """
    situation = survey(study, launch.storage)
    assert isinstance(situation, Situation)  # noqa: S101 - of a study
    folder = StudyFolder(situation.path)
    now = study_file(situation.plan, situation.keys, situation.inputs, start_id="")
    # Another study has its results in the storage that it lies in.
    before = _before(folder, now) if other is None else read_study_record(other)
    click.echo(diff_text(before, with_results(now, folder.path)))
    return 0


def _before(folder: StudyFolder, now: StudyFile) -> StudyRecord:
    """The state before the last change, which the next run would keep or an earlier one kept."""
    stored, history = folder.stored(), folder.history()
    if stored is not None and not is_same_state(stored, now):
        return with_results(stored, folder.path)
    if not history:
        raise ValueError(
            f"{folder.path} has no earlier state: neither code nor data changed since it was first run. "
            "Give another study's folder with --with."
        )
    return read_study_record(folder.path, history[-1])


def diff_text(before: StudyRecord, after: StudyRecord) -> str:
    """The cells of both, matched by what they change, with the paired difference of every metric."""
    was = {
        _name(cell): (cell, trials)
        for cell, trials in zip(before.cells, before.trials_by_cell, strict=True)
    }
    rows, remarks = [], []
    for cell, trials in zip(after.cells, after.trials_by_cell, strict=True):
        _, old = was.pop(_name(cell), (None, ()))
        if not old:
            remarks.append(f"{cell.label} is new.")
            continue
        for metric in after.metrics:
            change = paired(
                values_by_replicate(trials, metric.key), values_by_replicate(old, metric.key)
            )
            if change is None:
                continue
            difference = format_difference(change.difference, percent=metric.percent)
            interval = format_interval(change, percent=metric.percent)
            rows.append([cell.label, metric.title, difference, interval, change.n])
        broken = [trial for trial in trials if trial.state in ("failed", "diverged")]
        if broken and all(trial.counts for trial in old):
            remarks.append(
                f"{cell.label} is newly broken: {len(broken)} of its trials have no result."
            )
    remarks += [f"{cell.label} is gone." for cell, _ in was.values()]
    remarks += _causes(before, after)
    table = tabulate(
        rows, ["cell", "metric", "change", "95 % interval", "n"], disable_numparse=True
    )
    return "\n".join([f"{after.title}: since {before.path.name}", "", table, "", *remarks])


def _causes(before: StudyRecord, after: StudyRecord) -> list[str]:
    """Which code, data and versions differ, by the first trials of each that ended."""
    first, second = _identity(before), _identity(after)
    return why(second, first) if first and second else []


def _identity(study: StudyRecord) -> Mapping[str, Any] | None:
    return next((trial.entry.identity for trial in study.trials if trial.entry), None)


def _name(cell: Cell) -> str:
    return json.dumps([dict(sorted(cell.changes.items())), list(cell.seeds)])
