"""The study's folder: what is planned, the run folders, the report. Written by the driver alone.

::

    study.json       the study with its cells, seeds and trials, and what these read
    trials/NAME/     run folders, see toco.train.run_folder
    report.html ...  see sweeps.core.report
    tune-resources.json  what its trials get
    tune/            Ray Tune's own state and the newest snapshots of every trial; needed only to go on
"""

from __future__ import annotations

import fcntl
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeps.core.inputs import Inputs
from sweeps.core.links import link_or_copy
from sweeps.core.study import Plan
from toco.train.checkpoint import STATE, all_in, sync

STUDY_FILE = "study.json"
RESOURCES_FILE = "tune-resources.json"


class StudyFolder:
    """Reads and writes one study's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tune = path / "tune"

    @contextmanager
    def opened(self, plan: Plan, inputs: Inputs) -> Iterator[None]:
        """Make the folder, or find it as an earlier driver left it, and keep other drivers out.

        Args:
            plan: The study.
            inputs: What its trainings read, see ``training_inputs``.

        Raises:
            ValueError: Another driver runs this study, or what is there comes from other ``inputs``.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                # Held by the process, so that no crash can leave it behind.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"Another process is running the study in {self.path}. Wait for it, or give another --storage."
                ) from None
            if not (self.path / STUDY_FILE).is_file():
                self._write(STUDY_FILE, {**plan.to_json(), "inputs": inputs, "start_id": uuid.uuid4().hex})
            elif self._study().get("inputs") != inputs:
                raise ValueError(
                    f"{self.path} holds results of other data or other weights: what the trainings would read now is "
                    "not what it says in study.json. Give the data that it was started with, or another --storage."
                )
            yield

    @property
    def start_id(self) -> str:
        """Identifies this start of the study: the same after a restart, another one in another folder."""
        return str(self._study()["start_id"])

    def run_dir(self, trial_name: str) -> Path:
        """The run folder of a trial."""
        return self.path / "trials" / trial_name

    def status(self, trial_name: str) -> str | None:
        """How a trial ended, ``None`` while it has not, or where a damaged file leaves no way to know."""
        status = _read(self.run_dir(trial_name) / "result.json").get("status")
        return None if status is None else str(status)

    def publish(self, trial_name: str, snapshot: Path) -> None:
        """Bring a trial's run folder to the state of ``snapshot``.

        A snapshot older than what is there changes nothing: after the loss of a driver, Tune may hand out one again.
        At every moment of this the folder can be resumed: a checkpoint never appears before the rows that belong to it.
        """
        target = self.run_dir(trial_name)
        if self.status(trial_name) == "finished" or newest_step(snapshot) < newest_step(target):
            return
        last = Path("result.json")
        files = [path.relative_to(snapshot) for path in snapshot.rglob("*") if path.is_file()]
        for relative in sorted(set(files) - {last}):
            if relative.parts[0] != "checkpoints":
                _copy(snapshot / relative, target / relative)
        checkpoints = all_in(snapshot / "checkpoints")
        for checkpoint in checkpoints:
            _link_folder(checkpoint, target / "checkpoints" / checkpoint.name)
        for old in {path.name for path in all_in(target / "checkpoints")} - {path.name for path in checkpoints}:
            shutil.rmtree(target / "checkpoints" / old)
        if last in files:
            _copy(snapshot / last, target / last)

    def resources(self) -> dict[str, Any] | None:
        """What the trials of the Tune experiment in this folder get."""
        path = self.path / RESOURCES_FILE
        return json.loads(path.read_text()) if path.is_file() else None

    def write_resources(self, resources: Mapping[str, Any]) -> None:
        """Keep what the trials of a new Tune experiment get."""
        self._write(RESOURCES_FILE, resources)

    def set_tune_aside(self) -> None:
        """Move Tune's state out of the way; trials go on from their run folders."""
        if self.tune.exists():
            self.tune.rename(self.path / f"tune-replaced-{uuid.uuid4().hex[:8]}")

    def _study(self) -> dict[str, Any]:
        study: dict[str, Any] = json.loads((self.path / STUDY_FILE).read_text())
        return study

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        partial = self.path / f".{name}.partial"
        partial.write_text(json.dumps(content, indent=2) + "\n")
        sync(partial)
        partial.replace(self.path / name)
        sync(self.path)


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint in a run folder that can be read; -1 before the first."""
    return max((_step(checkpoint) for checkpoint in all_in(run_dir / "checkpoints")), default=-1)


def _step(checkpoint: Path) -> int:
    """What a checkpoint says of itself; -1 for one that is not there or is damaged."""
    step = _read(checkpoint / STATE).get("step")
    return step if isinstance(step, int) else -1


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no such file or object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.copy2(source, partial)
    partial.replace(target)


def _link_folder(source: Path, target: Path) -> None:
    """Make ``target``, a checkpoint, with links to the files of ``source``; one that is whole stays."""
    if _step(target) >= 0:
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=link_or_copy)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
