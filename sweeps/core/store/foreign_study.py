"""Make a study's record from results that no study ran, so that all of its statistics apply."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.core.design.designs import Block
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Cell, Metric, PlannedRow
from sweeps.core.store.comparison_record import ComparedRun, Comparison
from sweeps.core.store.foreign_runs import ForeignRun, ForeignRuns
from sweeps.core.store.ledger_entry import LedgerEntry, Origin, Resources
from sweeps.core.store.study_record import FORMAT_VERSION, StudyRecord, TrialRecord

SMALLEST_EFFECT = 0.005
"""Difference of a score worth detecting, as in ``Study.smallest_effect``: half a point."""
_POWER = 0.8
_NAME = "comparison"


def foreign_study(comparison: Comparison, runs: ForeignRuns, path: Path) -> StudyRecord:
    """Make the record of a study whose trainings are those of ``comparison``.

    Args:
        comparison: Rules and values.
        runs: The same trainings as they were read, for their run folders.
        path: The file or folder that they were read from.
    """
    titles = [metric.key.removeprefix("val/") for metric in comparison.metrics]
    metrics = tuple(
        Metric(
            metric.key,
            title if titles.count(title) == 1 else metric.key,
            metric.higher_is_better,
            is_percent=metric.unit != "number",
        )
        for metric, title in zip(comparison.metrics, titles, strict=True)
    )
    tested = comparison.metrics[0]
    margin = None if comparison.margin is None else comparison.margin * tested.scale
    sequential = None if comparison.looks is None else Sequential(looks=comparison.looks)
    seeds = _planned_seeds(comparison)
    # Run folders lie below the parent of a study's folder, and so do the files of messages.
    study_dir = (path if path.is_dir() else path.parent) / _NAME
    folders = {(run.row, run.seed): run for run in runs.runs}
    known = {(run.row, run.seed): run for run in comparison.runs}
    scales = {metric.key: metric.scale for metric in comparison.metrics}
    trials = tuple(
        tuple(
            _trial(
                place,
                replicate,
                known.get(place),
                folders.get(place),
                scales,
                study_dir,
            )
            for replicate, seed in enumerate(seeds)
            for place in [(row.label, seed)]
        )
        for row in comparison.rows
    )
    base = next(n for n, row in enumerate(comparison.rows) if row.label == comparison.base)
    columns = list(comparison.rows[0].levels)
    return StudyRecord(
        format_version=FORMAT_VERSION,
        start_id="0" * 32,
        name=_NAME,
        title=f"Comparison of {comparison.source}",
        digest=comparison.digest,
        recipe=runs.recipe,
        changes={},
        data=runs.data,
        design="rows of trainings that no study ran, each compared with one base",
        notes=(),
        seeds=seeds,
        sequential=sequential,
        margin=margin,
        purpose="effect",
        significance=comparison.significance,
        power=_POWER,
        # What is worth detecting in another unit is not known.
        smallest_effect=math.inf if tested.unit == "number" else margin or SMALLEST_EFFECT,
        metrics=metrics,
        blocks=(Block(", ".join(columns), (), tuple(columns), (tested.key,)),),
        rows=tuple(
            PlannedRow(
                number,
                0,
                row.label,
                number,
                None if number == base else base,
                "base" if number == base else "row",
                None,
            )
            for number, row in enumerate(comparison.rows)
        ),
        cells=tuple(
            Cell(row.label, row.levels, seeds, tuple(trial.key for trial in of_row))
            for row, of_row in zip(comparison.rows, trials, strict=True)
        ),
        inputs=(),
        forecast=None,
        path=study_dir,
        trials_by_cell=trials,
        source=comparison.source,
    )


def _planned_seeds(comparison: Comparison) -> tuple[int, ...]:
    """Return the seeds that a row may get, in the order of the looks.

    With looks, these are as many as the cap. Seeds that no training has yet follow the others.
    """
    seeds = comparison.seeds
    if comparison.looks is None:
        return seeds
    cap = comparison.looks[-1]
    following = range(max(seeds) + 1, max(seeds) + 1 + max(cap - len(seeds), 0))
    return (*seeds, *following)[:cap]


def _trial(
    place: tuple[str, int],
    replicate: int,
    run: ComparedRun | None,
    read: ForeignRun | None,
    scales: Mapping[str, float],
    study_dir: Path,
) -> TrialRecord:
    row, seed = place
    key = hashlib.sha256(f"{seed}/{row}".encode()).hexdigest()[:20]
    run_dir = read.run_dir if read and read.run_dir else study_dir / "runs" / key
    if run is None:
        return TrialRecord(key, seed, replicate, "waiting", None, 0, 0, None, run_dir)
    values = {
        name: None if value is None else value * scales[name] for name, value in run.values.items()
    }
    entry = _entry(key, seed, run, values, read)
    return TrialRecord(
        key, seed, replicate, entry.status, run.diverged, 0, entry.step, entry, run_dir
    )


def _entry(
    key: str,
    seed: int,
    run: ComparedRun,
    values: Mapping[str, float | None],
    read: ForeignRun | None,
) -> LedgerEntry:
    """Make the entry of a training; what a table does not say is empty."""
    config: Mapping[str, Any] = read.config if read else {}
    provenance: Mapping[str, Any] = read.provenance if read else {}
    return LedgerEntry(
        key=key,
        training_key=key,
        status="finished" if run.diverged is None else "diverged",
        step=config.get("num_steps", 0) if run.diverged is None else 0,
        attempts=0,
        message=run.diverged,
        identity={
            "code": {},
            "data": provenance.get("data_manifest") or {},
            "weights": provenance.get("weights_sha256"),
            "seed": seed,
        },
        config=config,
        metrics=values,
        wall_time_s=None,
        step_time_s=None,
        peak_memory_bytes=None,
        provenance=provenance,
        resources=Resources(cpus=1, gpus=0),
        origin=Origin(study="", recipe=""),
        run="",
    )
