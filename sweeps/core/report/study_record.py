"""What a study's folder says, as plain values; the study may still be running, and trials may have failed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toco.tracking import RunRecord, read_run_record


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """A column: key of ``result.json`` and heading."""

    key: str
    title: str

    @property
    def is_percent(self) -> bool:
        """Whether it is a score in [0, 1] that is printed in percent."""
        return not any(part in self.key for part in ("similarity", "loss", "time", "bytes"))


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One training.

    Attributes:
        name: Name of its run folder.
        seed: Its seed.
        state: ``finished``, ``stopped``, ``diverged``, ``unfinished`` (no result yet), ``missing`` or ``unreadable``.
        message: Why it did not finish, where something is known.
        run: Its run folder, where it can be read.
    """

    name: str
    seed: int
    state: str
    message: str | None
    run: RunRecord | None

    @property
    def counts(self) -> bool:
        """Whether it enters the table: only a finished training does."""
        return self.state == "finished"

    def value(self, key: str) -> float | None:
        """A metric of its result; ``None`` where it does not count or was not defined."""
        if not self.counts or self.run is None or self.run.result is None:
            return None
        value = self.run.result["metrics"].get(key)
        return None if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True, slots=True)
class CellRecord:
    """One row of the table.

    Attributes:
        label: As printed.
        values: Value by dotted path.
        paper_label: Label of the published row that it stands beside.
        paper: That row's metrics as fractions; empty where there is none.
        trials: Its trainings, by seed as planned.
    """

    label: str
    values: dict[str, Any]
    paper_label: str | None
    paper: dict[str, float]
    trials: tuple[TrialRecord, ...]

    def metric(self, key: str) -> list[float]:
        """The metric of every training that has it."""
        values = [trial.value(key) for trial in self.trials]
        return [value for value in values if value is not None]

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """Run folders of the trainings that count."""
        return tuple(trial.run for trial in self.trials if trial.counts and trial.run is not None)


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study's folder as it stands."""

    path: Path
    name: str
    title: str
    recipe: str
    data: str
    digest: str
    changes: dict[str, Any]
    factor_names: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: tuple[MetricRecord, ...]
    cells: tuple[CellRecord, ...]
    paper_source: str | None
    paper_setting: str | None

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """All trainings, cell by cell."""
        return tuple(trial for cell in self.cells for trial in cell.trials)

    @property
    def remarks(self) -> list[str]:
        """What keeps the table from being complete, one sentence a training."""
        said = {
            "stopped": "was stopped before its end",
            "diverged": "diverged",
            "unfinished": "has not finished",
            "missing": "has left no run folder",
            "unreadable": "has a run folder that cannot be read",
        }
        return [
            f"{cell.label}, seed {trial.seed}: {said[trial.state]}; it does not count."
            + (f" {trial.message}" if trial.message else "")
            for cell in self.cells
            for trial in cell.trials
            if not trial.counts
        ]


def read_study_record(study_dir: Path) -> StudyRecord:
    """Read ``study.json`` and the run folders in ``trials/``.

    Raises:
        ValueError: There is no such file, or it is of another version.
    """
    file = study_dir / "study.json"
    if not file.is_file():
        raise ValueError(f"{study_dir} is not a study's folder: it has no study.json.")
    study = json.loads(file.read_text(encoding="utf-8"))
    if study.get("format_version") != 1:
        raise ValueError(f"{file} has format version {study.get('format_version')}; this program reads 1.")
    paper = study["paper"] or {"source": None, "setting": None, "rows": []}
    published = {row["label"]: row["metrics"] for row in paper["rows"]}
    cells = tuple(
        CellRecord(
            label=cell["label"],
            values=cell["values"],
            paper_label=cell["paper_row"],
            paper=published.get(cell["paper_row"], {}),
            trials=tuple(_read_trial(study_dir, trial) for trial in study["trials"] if trial["cell"] == number),
        )
        for number, cell in enumerate(study["cells"])
    )
    return StudyRecord(
        path=study_dir,
        name=study["name"],
        title=study["title"],
        recipe=study["recipe"],
        data=study["data"],
        digest=study["digest"],
        changes=study["changes"],
        factor_names=tuple(factor["name"] for factor in study["factors"]),
        seeds=tuple(study["seeds"]),
        metrics=tuple(MetricRecord(metric["key"], metric["title"]) for metric in study["metrics"]),
        cells=cells,
        paper_source=paper["source"],
        paper_setting=paper["setting"],
    )


def _read_trial(study_dir: Path, trial: Mapping[str, Any]) -> TrialRecord:
    name, seed = trial["name"], trial["seed"]
    run_dir = study_dir / "trials" / name
    if not run_dir.is_dir():
        return TrialRecord(name, seed, "missing", None, None)
    try:
        run = read_run_record(run_dir)
    except ValueError as error:
        return TrialRecord(name, seed, "unreadable", str(error), None)
    if run.result is None:
        last = f"Its last row is of step {run.rows[-1].step}." if run.rows else None
        return TrialRecord(name, seed, "unfinished", last, run)
    return TrialRecord(name, seed, run.result["status"], run.result.get("message"), run)
