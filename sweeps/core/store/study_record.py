"""A study's folder with its part of the ledger, as plain values.

The study may still run, and trials may have failed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import StringConstraints, field_validator

from sweeps.core.design.claims import Tests
from sweeps.core.design.designs import Block
from sweeps.core.design.paper import PaperRow
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Cell, Metric, PlannedRow, declared_tests
from sweeps.core.store.budget_record import BudgetStop
from sweeps.core.store.folder_record import FolderFile, FolderRecord, read_optional
from sweeps.core.store.forecast_record import Forecast
from sweeps.core.store.identity import InputDigests
from sweeps.core.store.leases import Leases
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.ledger_entry import LedgerEntry
from sweeps.core.store.stored import Stored
from toco.tracking import Pages

FORMAT_VERSION = 3
PROGRESS_FILE = "progress.json"
MLFLOW_FILE = "mlflow.json"

State = Literal["finished", "diverged", "failed", "running", "waiting"]
_Id = Annotated[str, StringConstraints(pattern=r"^[\w-]+$")]


class MlflowLinks(Stored):
    """``mlflow.json``: where MLflow's UI shows a study.

    Attributes:
        host: Address of the UI.
        experiment_id: MLflow's id of the study's experiment.
        runs: Ids of the MLflow runs of its trials, by their keys in the ledger.
    """

    host: Annotated[str, StringConstraints(pattern="^https?://")]
    experiment_id: _Id
    runs: Mapping[str, _Id]

    @property
    def pages(self) -> Pages:
        """The pages of the study's experiment."""
        return Pages(self.host, self.experiment_id)

    def trial(self, key: str) -> str | None:
        """Return the page of a trial; ``None`` where MLflow does not have it."""
        return self.pages.run(self.runs[key]) if key in self.runs else None


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial of a study.

    Attributes:
        key: Its key in the ledger.
        seed: Its seed.
        replicate: Its place among the configuration's seeds; trials of the same place are paired.
        state: ``finished`` counts; ``diverged`` and ``failed`` are results, too, but have no
            numbers.
        message: Traceback of a failure, or how it diverged.
        attempts: Number of failed attempts.
        step: Optimizer updates done, as far as known.
        entry: Its entry in the ledger; ``None`` before it ends.
        run_dir: Its run folder, which may not exist.
    """

    key: str
    seed: int
    replicate: int
    state: State
    message: str | None
    attempts: int
    step: int
    entry: LedgerEntry | None
    run_dir: Path

    @property
    def counts(self) -> bool:
        """Whether the trial enters the table."""
        return self.state == "finished"

    def value(self, key: str) -> float | None:
        """Return a metric or a cost; ``None`` where the trial does not count or lacks it."""
        value = self.entry.measured.get(key) if self.entry and self.counts else None
        return None if value is None or not math.isfinite(value) else float(value)


class StudyFile(FolderFile):
    """``study.json``: a study with its rows, configurations, seeds, keys and inputs.

    Attributes:
        seeds: Seeds that a row may get.
        sequential: Looks of a sequential study; ``None`` for a fixed list of seeds.
        margin: Margin of "no difference", as a fraction.
        inputs: Digests of the files that trials read, see ``sweeps.core.store.identity``.
        forecast: The cost predicted when the study was first run; ``None`` where nothing was
            predicted.
        stopped: The last stop by a budget; ``None`` since a later start of the study.
    """

    design: str
    notes: tuple[str, ...]
    seeds: tuple[int, ...]
    sequential: Sequential | None = None
    margin: float | None = None
    purpose: Literal["effect", "direction"]
    significance: float
    power: float
    smallest_effect: float
    metrics: tuple[Metric, ...]
    blocks: tuple[Block, ...]
    rows: tuple[PlannedRow, ...]
    cells: tuple[Cell, ...]
    inputs: tuple[InputDigests, ...]
    forecast: Forecast | None
    stopped: BudgetStop | None = None

    @field_validator("rows")
    @classmethod
    def _number_rows(cls, rows: tuple[PlannedRow, ...]) -> tuple[PlannedRow, ...]:
        return tuple(replace(row, number=number) for number, row in enumerate(rows))

    @property
    def tests(self) -> Tests:
        """The claims of the study and the rules that decide them."""
        return declared_tests(
            self.rows,
            self.blocks,
            self.cells,
            self.metrics,
            self.sequential,
            self.significance,
            self.margin,
        )


class StudyRecord(StudyFile):
    """A study in its present state.

    Attributes:
        path: Its folder.
        trials_by_cell: Trials by configuration, and by seed as planned.
        eta_s: Seconds to the end, if trials run and the time is known.
        running: Whether a driver runs it now.
        mlflow: Where MLflow's UI shows it, if known.
        source: Name of the file or folder with the results, if no study ran the trainings, see
            ``sweeps.core.store.foreign_study``.
    """

    path: Path
    trials_by_cell: tuple[tuple[TrialRecord, ...], ...]
    eta_s: float | None = None
    running: bool = False
    mlflow: MlflowLinks | None = None
    source: str | None = None

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """All trials, configuration by configuration."""
        return tuple(trial for trials in self.trials_by_cell for trial in trials)

    @property
    def tests_scores(self) -> bool:
        """Whether the compared metrics are scores, whose differences are points."""
        compared = {key for block in self.blocks for key in block.metrics}
        return all(metric.percent for metric in self.metrics if metric.key in compared)

    def trials_of(self, row: PlannedRow) -> tuple[TrialRecord, ...]:
        """Return the trials that a row shows."""
        return self.trials_by_cell[row.cell]

    def first_seeds(self, counts: Sequence[int]) -> StudyRecord:
        """Return the study with the first trials of each configuration.

        Args:
            counts: Number of seeds by configuration.
        """
        if all(n >= len(trials) for n, trials in zip(counts, self.trials_by_cell, strict=True)):
            return self
        cells = tuple(
            replace(cell, seeds=cell.seeds[:n], keys=cell.keys[:n])
            for cell, n in zip(self.cells, counts, strict=True)
        )
        trials = tuple(of_cell[:n] for of_cell, n in zip(self.trials_by_cell, counts, strict=True))
        return self.model_copy(update={"cells": cells, "trials_by_cell": trials})

    def changes_of(self, row: PlannedRow) -> Mapping[str, Any]:
        """Return the fields that the design sets for a row in the study's recipe."""
        return self.cells[row.cell].changes

    def published(self, row: PlannedRow) -> PaperRow | None:
        """Return the published row that a row is compared with."""
        paper = self.blocks[row.block].paper
        return (
            next((paper_row for paper_row in paper.rows if paper_row.label == row.paper_row), None)
            if paper
            else None
        )


def values_by_replicate(trials: Iterable[TrialRecord], key: str) -> dict[int, float]:
    """Return the metric of every trial that has it, by the trial's place among the seeds."""
    values = {trial.replicate: trial.value(key) for trial in trials}
    return {replicate: value for replicate, value in values.items() if value is not None}


class ProgressFile(Stored):
    """``progress.json``: the progress of a driver.

    Attributes:
        running: Whether the driver has not ended.
        steps: Optimizer updates done by running trials, by key.
        eta_s: Seconds to the end; ``None`` where unknown.
    """

    running: bool
    steps: Mapping[str, int]
    eta_s: float | None


RECORD = FolderRecord("study.json", "study", FORMAT_VERSION, StudyFile)


def read_study_record(study_dir: Path, file: Path | None = None) -> StudyRecord:
    """Read ``study.json``, ``progress.json`` and the ledger of the same storage.

    Args:
        study_dir: The study's folder.
        file: Another ``study.json``, such as an earlier one.

    Raises:
        ValueError: The file does not exist, is damaged, or has another version.
    """
    advice = (
        None if file is None else "Delete it, or compare with another study's folder by --with."
    )
    return with_results(RECORD.read(file or study_dir / RECORD.file, advice), study_dir)


def with_results(study: StudyFile, study_dir: Path) -> StudyRecord:
    """Add the present state of ledger, driver and MLflow to a study. Nothing is written.

    Args:
        study: The study.
        study_dir: Its folder, which need not exist.
    """
    ledger = Ledger(study_dir.parent)
    progress = read_optional(study_dir / PROGRESS_FILE, ProgressFile)
    written = progress.steps if progress else {}
    leases = Leases(study_dir.parent, "a reader of the study")
    steps = {key: step for key, step in written.items() if _is_held(leases, key)}
    return StudyRecord(
        **dict(study),
        path=study_dir,
        trials_by_cell=tuple(
            tuple(
                _trial(ledger, key, seed, replicate, steps)
                for replicate, (seed, key) in enumerate(zip(cell.seeds, cell.keys, strict=True))
            )
            for cell in study.cells
        ),
        eta_s=progress.eta_s if progress and steps else None,
        # A killed driver leaves its last ``progress.json`` behind.
        running=progress is not None and progress.running and (bool(steps) or not written),
        mlflow=read_optional(study_dir / MLFLOW_FILE, MlflowLinks),
    )


def _is_held(leases: Leases, key: str) -> bool:
    """Return whether a living driver works on a trial; true where that cannot be asked."""
    try:
        return leases.holder(key) is not None
    except OSError:
        return True


def _trial(
    ledger: Ledger, key: str, seed: int, replicate: int, steps: Mapping[str, int]
) -> TrialRecord:
    run_dir, entry = ledger.run_dir(key), ledger.entry(key)
    if entry is not None:
        return TrialRecord(
            key,
            seed,
            replicate,
            entry.status,
            entry.message,
            entry.attempts,
            entry.step,
            entry,
            run_dir,
        )
    failures = ledger.failures(key)
    state: State = "running" if key in steps else "failed" if failures else "waiting"
    message = failures[-1].traceback if failures else None
    return TrialRecord(
        key, seed, replicate, state, message, len(failures), steps.get(key, 0), None, run_dir
    )
