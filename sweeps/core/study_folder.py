"""The study's folder: what is planned, the run folders, the report. Written by the driver alone.

::

    study.json       the study with its cells, seeds and trials
    trials/NAME/     run folders, see toco.train.run_folder
    report.html ...  see sweeps.core.report
    tune-resources.json  what its trials get
    tune/            Ray Tune's own state and the newest snapshots of every trial; needed only to go on
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeps.core.study import Plan
from toco.train.checkpoint import all_in, sync

STUDY_FILE = "study.json"
RESOURCES_FILE = "tune-resources.json"


class StudyFolder:
    """Reads and writes one study's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tune = path / "tune"

    @contextmanager
    def opened(self, plan: Plan) -> Iterator[None]:
        """Make the folder, or find it as an earlier driver left it, and keep other drivers out.

        Raises:
            ValueError: Another driver runs this study.
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
                self._write(STUDY_FILE, {**plan.to_json(), "start_id": uuid.uuid4().hex})
            yield

    @property
    def start_id(self) -> str:
        """Identifies this start of the study: the same after a restart, another one in another folder."""
        return str(self._study()["start_id"])

    def run_dir(self, trial_name: str) -> Path:
        """The run folder of a trial."""
        return self.path / "trials" / trial_name

    def status(self, trial_name: str) -> str | None:
        """How a trial ended, ``None`` while it has not."""
        result = self.run_dir(trial_name) / "result.json"
        return str(json.loads(result.read_text())["status"]) if result.is_file() else None

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
    """Step of the newest checkpoint in a run folder; -1 before the first."""
    checkpoints = all_in(run_dir / "checkpoints")
    return int(checkpoints[-1].name.removeprefix("step_")) if checkpoints else -1


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.copy2(source, partial)
    partial.replace(target)


def _link_folder(source: Path, target: Path) -> None:
    """Make ``target`` with links to the files of ``source``, or copies where the file system cannot link."""
    if target.exists():
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)

    def link(file: str, to: str) -> None:
        try:
            os.link(file, to)
        except OSError:
            shutil.copy2(file, to)

    shutil.copytree(source, partial, copy_function=link)
    partial.rename(target)
