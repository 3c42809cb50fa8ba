"""Compare two states of a study, or two studies, configuration by configuration."""

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
    """Print how the study differs from ``other``; return 0.

    By default it is compared with its state before the last change. Nothing is written.

    Raises:
        ValueError: The study has no earlier state.
    """
    situation = survey(study, launch.storage)
    assert isinstance(situation, Situation)  # noqa: S101 - of a study
    folder = StudyFolder(situation.path)
    present = study_file(situation.plan, situation.keys, situation.inputs, start_id="")
    # The results of another study are in the storage of its folder.
    before = _before(folder, present) if other is None else read_study_record(other)
    click.echo(diff_text(before, with_results(present, folder.path)))
    return 0


def _before(folder: StudyFolder, present: StudyFile) -> StudyRecord:
    """Return the state before the last change.

    It is the stored one if the next run would replace it, else the newest of the history.
    """
    stored, history = folder.stored(), folder.history()
    if stored is not None and not is_same_state(stored, present):
        return with_results(stored, folder.path)
    if not history:
        raise ValueError(
            f"{folder.path} has no earlier state: neither code nor data changed since it was first "
            "run. Give another study's folder with --with."
        )
    return read_study_record(folder.path, history[-1])


def diff_text(before: StudyRecord, after: StudyRecord) -> str:
    """Match the configurations of both by their changes, and list the paired differences."""
    earlier = {
        _name(cell): (cell, trials)
        for cell, trials in zip(before.cells, before.trials_by_cell, strict=True)
    }
    rows, remarks = [], []
    for cell, trials in zip(after.cells, after.trials_by_cell, strict=True):
        _, old = earlier.pop(_name(cell), (None, ()))
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
    remarks += [f"{cell.label} is gone." for cell, _ in earlier.values()]
    remarks += _causes(before, after)
    table = tabulate(
        rows, ["configuration", "metric", "change", "95 % interval", "n"], disable_numparse=True
    )
    return "\n".join([f"{after.title}: since {before.path.name}", "", table, "", *remarks])


def _causes(before: StudyRecord, after: StudyRecord) -> list[str]:
    """List the code, data and versions that differ, by the first ended trial of each state."""
    first, second = _identity(before), _identity(after)
    return why(second, first) if first and second else []


def _identity(study: StudyRecord) -> Mapping[str, Any] | None:
    return next((trial.entry.identity for trial in study.trials if trial.entry), None)


def _name(cell: Cell) -> str:
    return json.dumps([dict(sorted(cell.changes.items())), list(cell.seeds)])
