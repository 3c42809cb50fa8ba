"""The study's folder: what is planned and what is shown. Results lie in the ledger beside it, shared by all studies.

::

    study.json       the study with its rows, cells, seeds, keys in the ledger, and what its trials read
    progress.json    how far a running driver is
    mlflow.json      where MLflow shows it
    history/         earlier states of study.json: other code or other data
    report.html ...  see sweeps.core.report
"""

from __future__ import annotations

import fcntl
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeps.core.inputs import Inputs
from sweeps.core.study import FORMAT_VERSION, Plan
from sweeps.core.study_record import MLFLOW_FILE, PROGRESS_FILE, STUDY_FILE, read_json
from sweeps.core.versioned_file import read_versioned
from toco.files import sync


class StudyFolder:
    """Reads and writes one study's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Try to be the driver that writes what is shown; says whether this one is. Others may train all the same."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                # Held by the process, so that no crash can leave it behind.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def write_study(
        self, plan: Plan, keys: Sequence[str], inputs: Sequence[Inputs], forecast: Mapping[str, Any] | None
    ) -> None:
        """Write ``study.json``, unless it says the same. A forecast that is there stays: it is compared afterwards.

        Args:
            plan: The study.
            keys: Keys of its trials in the ledger, in their order.
            inputs: What its trials read, see ``sweeps.core.inputs``.
            forecast: What was foretold.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        was = self._study()
        content = plan.to_json()
        for number, cell in enumerate(content["cells"]):
            cell["keys"] = [key for trial, key in zip(plan.trials, keys, strict=True) if trial.cell == number]
        content["inputs"] = list({json.dumps(item): item for item in inputs}.values())
        content["start_id"] = was.get("start_id") or uuid.uuid4().hex
        same = [was.get(name) for name in ("cells", "inputs")] == [content[name] for name in ("cells", "inputs")]
        content["forecast"] = (was.get("forecast") if same else None) or forecast
        if was and not same:
            self._keep(was)
        if was != content:
            _write(self.path / STUDY_FILE, content)

    def write_progress(self, steps: Mapping[str, int], eta_s: float | None, *, running: bool) -> None:
        """Say how far the running trials are, by key."""
        _write(self.path / PROGRESS_FILE, {"running": running, "steps": dict(steps), "eta_s": eta_s}, durable=False)

    def write_mlflow_page(self, address: str) -> None:
        """Say where MLflow shows the study, for the links of the report."""
        if read_json(self.path / MLFLOW_FILE) != {"page": address}:
            _write(self.path / MLFLOW_FILE, {"page": address}, durable=False)

    @property
    def start_id(self) -> str:
        """Identifies this start of the study: the same after a restart, another one in another folder."""
        return str(read_versioned(self.path / STUDY_FILE, "study", FORMAT_VERSION)["start_id"])

    def history(self) -> list[Path]:
        """Earlier states of ``study.json``, oldest first."""
        return sorted((self.path / "history").glob("*.json"))

    def _study(self) -> dict[str, Any]:
        file = self.path / STUDY_FILE
        return read_versioned(file, "study", FORMAT_VERSION) if file.is_file() else {}

    def _keep(self, study: Mapping[str, Any]) -> None:
        (self.path / "history").mkdir(exist_ok=True)
        _write(self.path / "history" / f"{len(self.history()):04d}.json", study)


def _write(path: Path, content: Mapping[str, Any], *, durable: bool = True) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    if durable:
        sync(partial)
    partial.replace(path)
    if durable:
        sync(path.parent)
