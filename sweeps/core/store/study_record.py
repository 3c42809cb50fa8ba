"""A study's folder with its part of the ledger, as plain values; it may still run, and trials may have failed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sweeps.core.design.paper import Claim, Paper, PaperRow
from sweeps.core.design.study import FORMAT_VERSION, Metric
from sweeps.core.store.folder_record import FolderRecord, read_beside
from sweeps.core.store.leases import Leases
from sweeps.core.store.ledger import Ledger
from toco.tracking import Pages, RunRecord, read_run_record

RECORD = FolderRecord("study.json", "study", FORMAT_VERSION)
PROGRESS_FILE = "progress.json"
MLFLOW_FILE = "mlflow.json"

State = Literal["finished", "diverged", "failed", "running", "waiting"]


@dataclass(frozen=True, slots=True)
class MlflowLinks:
    """Where MLflow's UI shows a study.

    Attributes:
        pages: Of its experiment.
        runs: Ids of the MLflow runs of its trials, by their keys in the ledger.
    """

    pages: Pages
    runs: Mapping[str, str]

    def trial(self, key: str) -> str | None:
        """Page of a trial; ``None`` where MLflow does not have it."""
        return self.pages.run(self.runs[key]) if key in self.runs else None


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial.

    Attributes:
        key: Its key in the ledger.
        seed: Its seed.
        replicate: Its place among the cell's seeds; trials of the same place are paired.
        state: ``finished`` counts; ``diverged`` and ``failed`` are results, too, but have no numbers.
        message: Traceback of a failure, or how it diverged.
        attempts: How often it was tried and failed.
        step: Optimizer updates done, as far as known.
        entry: Its entry in the ledger; empty before it ends.
        run_dir: Its run folder, which may not be there.
    """

    key: str
    seed: int
    replicate: int
    state: State
    message: str | None
    attempts: int
    step: int
    entry: Mapping[str, Any]
    run_dir: Path

    @property
    def counts(self) -> bool:
        """Whether it enters the table."""
        return self.state == "finished"

    def value(self, key: str) -> float | None:
        """A metric of its result; ``None`` where it does not count or was not defined."""
        value = self.entry["metrics"].get(key) if self.counts else None
        return None if value is None or not math.isfinite(value) else float(value)

    def run(self) -> RunRecord:
        """Its run folder, read now.

        Raises:
            ValueError: It is not there or cannot be read; the message names the file.
        """
        return read_run_record(self.run_dir)


@dataclass(frozen=True, slots=True)
class CellRecord:
    """One config with its trials, by seed as planned."""

    label: str
    changes: Mapping[str, Any]
    trials: tuple[TrialRecord, ...]

    def by_replicate(self, key: str) -> dict[int, float]:
        """The metric of every trial that has it, by its place among the seeds."""
        values = {trial.replicate: trial.value(key) for trial in self.trials}
        return {replicate: value for replicate, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class RowRecord:
    """One row of the table; ``versus`` is the number of the row it is compared with, over all blocks."""

    number: int
    block: int
    label: str
    cell: CellRecord
    versus: int | None
    role: Literal["base", "row", "a/a"]
    paper: PaperRow | None


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """One block of the table; ``metrics`` are the keys whose comparisons are declared."""

    title: str
    factors: tuple[str, ...]
    metrics: tuple[str, ...]
    paper: Paper | None


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study as it stands.

    Attributes:
        inputs: Digests of what was read, see ``sweeps.core.store.inputs``.
        forecast: What was foretold when the study was first run; ``None`` where nothing was.
        eta_s: Seconds to the end, while trials run and that is known.
        running: Whether a driver runs it now.
        mlflow: Where MLflow's UI shows it, if that is known.
    """

    path: Path
    name: str
    title: str
    recipe: str
    data: str
    digest: str
    changes: Mapping[str, Any]
    design: str
    notes: tuple[str, ...]
    seeds: tuple[int, ...]
    purpose: Literal["effect", "direction"]
    significance: float
    power: float
    smallest_effect: float
    metrics: tuple[Metric, ...]
    blocks: tuple[BlockRecord, ...]
    rows: tuple[RowRecord, ...]
    cells: tuple[CellRecord, ...]
    inputs: tuple[Mapping[str, Any], ...]
    forecast: Mapping[str, Any] | None
    eta_s: float | None
    running: bool
    mlflow: MlflowLinks | None

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """All trials, cell by cell."""
        return tuple(trial for cell in self.cells for trial in cell.trials)

    @property
    def comparisons(self) -> tuple[tuple[int, str], ...]:
        """The declared comparisons: (number of the row, key of the metric), the family of Holm's correction."""
        return tuple(
            (row.number, key) for row in self.rows if row.role == "row" for key in self.blocks[row.block].metrics
        )


def read_study_record(study_dir: Path, file: Path | None = None) -> StudyRecord:
    """Read ``study.json``, ``progress.json`` and the ledger beside the study's folder.

    Args:
        study_dir: The study's folder.
        file: Another ``study.json``, such as an earlier one.

    Raises:
        ValueError: There is no such file, it is damaged, or of another version.
    """
    advice = None if file is None else "Delete it, or compare with another study's folder by --with."
    study = RECORD.read(file or study_dir / RECORD.file, advice)
    ledger = Ledger(study_dir.parent)
    progress = read_beside(study_dir / PROGRESS_FILE)
    written: Mapping[str, int] = progress.get("steps", {})
    leases = Leases(study_dir.parent, "somebody who reads the study")
    steps = {key: step for key, step in written.items() if _is_held(leases, key)}
    cells = tuple(
        CellRecord(
            cell["label"],
            cell["changes"],
            tuple(
                _trial(ledger, key, seed, replicate, steps)
                for replicate, (seed, key) in enumerate(zip(cell["seeds"], cell["keys"], strict=True))
            ),
        )
        for cell in study["cells"]
    )
    blocks = tuple(
        BlockRecord(block["title"], tuple(block["factors"]), tuple(block["metrics"]), _paper(block["paper"]))
        for block in study["blocks"]
    )
    return StudyRecord(
        path=study_dir,
        name=study["name"],
        title=study["title"],
        recipe=study["recipe"],
        data=study["data"],
        digest=study["digest"],
        changes=study["changes"],
        design=study["design"],
        notes=tuple(study["notes"]),
        seeds=tuple(study["seeds"]),
        purpose=study["purpose"],
        significance=study["significance"],
        power=study["power"],
        smallest_effect=study["smallest_effect"],
        metrics=tuple(Metric(**metric) for metric in study["metrics"]),
        blocks=blocks,
        rows=tuple(
            RowRecord(
                number,
                row["block"],
                row["label"],
                cells[row["cell"]],
                row["versus"],
                row["role"],
                _paper_row(blocks[row["block"]].paper, row["paper_row"]),
            )
            for number, row in enumerate(study["rows"])
        ),
        cells=cells,
        inputs=tuple(study["inputs"]),
        forecast=study.get("forecast"),
        eta_s=progress.get("eta_s") if steps else None,
        # A driver that was killed leaves what it wrote last.
        running=bool(progress.get("running")) and (bool(steps) or not written),
        mlflow=_mlflow_links(read_beside(study_dir / MLFLOW_FILE)),
    )


def _is_held(leases: Leases, key: str) -> bool:
    """Whether a driver that is still there works on a trial; where that cannot be asked, what it wrote counts."""
    try:
        return leases.holder(key) is not None
    except OSError:
        return True


def _trial(ledger: Ledger, key: str, seed: int, replicate: int, steps: Mapping[str, int]) -> TrialRecord:
    run_dir, entry = ledger.run_dir(key), ledger.entry(key)
    if entry is not None:
        message = entry.get("message")
        return TrialRecord(
            key, seed, replicate, entry["status"], message, entry["attempts"], entry["step"], entry, run_dir
        )
    failures = ledger.failures(key)
    state: State = "running" if key in steps else "failed" if failures else "waiting"
    message = failures[-1]["traceback"] if failures else None
    return TrialRecord(key, seed, replicate, state, message, len(failures), steps.get(key, 0), {}, run_dir)


def _paper(stored: Mapping[str, Any] | None) -> Paper | None:
    if stored is None:
        return None
    rows = tuple(PaperRow(**row) for row in stored["rows"])
    claims = tuple(Claim(**{**claim, "than": tuple(claim["than"])}) for claim in stored["claims"])
    return Paper(**{**stored, "rows": rows, "claims": claims})


def _paper_row(paper: Paper | None, label: str | None) -> PaperRow | None:
    return next((row for row in paper.rows if row.label == label), None) if paper else None


def _mlflow_links(content: Mapping[str, Any]) -> MlflowLinks | None:
    """What ``StudyFolder.write_mlflow_links`` wrote; ``None`` where it is not that: links are not worth an error."""
    host, experiment, runs = (content.get(name) for name in ("host", "experiment_id", "runs"))
    if not (isinstance(host, str) and host.startswith(("http://", "https://")) and isinstance(runs, dict)):
        return None
    if not all(re.fullmatch(r"[\w-]+", str(name)) for name in (experiment, *runs.values())):
        return None
    return MlflowLinks(Pages(host, str(experiment)), runs)
