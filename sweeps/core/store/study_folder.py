"""The study's folder: what is planned and what is shown. Results lie in the ledger beside it, shared by all studies.

::

    study.json       the study with its rows, cells, seeds, keys in the ledger, and what its trials
    read progress.json    how far a running driver is mlflow.json      where MLflow shows it
    history/         earlier states of study.json (other code or other data), and those that could
    not be read report.html ...  see sweeps.core.report
"""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sweeps.core.design.study import Plan
from sweeps.core.store.first_writer import write_first
from sweeps.core.store.folder_record import HISTORY, read_beside
from sweeps.core.store.forecast_record import Forecast
from sweeps.core.store.identity import Inputs
from sweeps.core.store.study_record import (
    MLFLOW_FILE,
    PROGRESS_FILE,
    RECORD,
    MlflowLinks,
    Progress,
    StudyFile,
)
from toco.files import UnreadableError, VersionError, is_sealed, write_text
from toco.tracking import Pages

logger = logging.getLogger(__name__)


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
        self, plan: Plan, keys: Sequence[str], inputs: Sequence[Inputs], forecast: Forecast | None
    ) -> None:
        """Write ``study.json``, unless it says the same. A forecast that is there stays: it is compared afterwards.

        One that cannot be read is kept in ``history/``, which a warning says.

        Args:
            plan: The study.
            keys: Keys of its trials in the ledger, in their order.
            inputs: What its trials read, see ``sweeps.core.store.identity``.
            forecast: What was foretold.
        """

        def make(was: StudyFile | None, start_id: str) -> StudyFile:
            now = study_file(plan, keys, inputs, start_id)
            same = was is not None and is_same_state(was, now)
            if was is not None and not same:
                self._keep(was)
            return now.model_copy(
                update={"forecast": (was.forecast if was and same else None) or forecast}
            )

        RECORD.write(self.path, make)

    def write_progress(
        self, steps: Mapping[str, int], eta_s: float | None, *, running: bool
    ) -> None:
        """Say how far the running trials are, by key."""
        progress = Progress(running=running, steps=steps, eta_s=eta_s)
        write_text(self.path / PROGRESS_FILE, progress.text(), durable=False)

    def write_mlflow_links(self, pages: Pages, runs: Mapping[str, str]) -> None:
        """Say where MLflow's UI shows the study, for the links of the report.

        Args:
            pages: Of its experiment.
            runs: Ids of MLflow runs by the keys of trials; those that were written before stay.
        """
        was = read_beside(self.path / MLFLOW_FILE, MlflowLinks)
        now = MlflowLinks(host=pages.host, experiment_id=pages.experiment_id, runs=runs)
        if was is not None and was.pages == pages:
            now = now.model_copy(update={"runs": {**was.runs, **runs}})
        if was != now:
            write_text(self.path / MLFLOW_FILE, now.text(), durable=False)

    def stored(self) -> StudyFile | None:
        """``study.json``; ``None`` where it is missing or, with a warning, damaged. Writes nothing.

        Raises:
            ValueError: It is of another version.
        """
        path = self.path / RECORD.file
        if not path.is_file():
            return None
        try:
            return RECORD.read(path)
        except VersionError:
            raise
        except UnreadableError as error:
            logger.warning(str(error))
            return None

    @property
    def start_id(self) -> str:
        """Identifies this start of the study: the same after a restart, another one in another folder."""
        return RECORD.read(self.path / RECORD.file).start_id

    def history(self) -> list[Path]:
        """Earlier states of ``study.json``, oldest first."""
        return sorted((self.path / HISTORY).glob("*.json"))

    def _keep(self, study: StudyFile) -> None:
        """Keep an earlier state of ``study.json``, unless another driver just did."""
        text = study.text()
        history = self.history()
        if history and history[-1].read_bytes() == text.encode():
            return
        number = len(history)
        while not write_first(path := self.path / HISTORY / f"{number:04d}.json", text, is_sealed):
            if path.read_text() == text:
                return
            number += 1


def study_file(
    plan: Plan, keys: Sequence[str], inputs: Sequence[Inputs], start_id: str
) -> StudyFile:
    """What ``study.json`` says of a plan; without a forecast.

    Args:
        plan: The study.
        keys: Keys of its trials in the ledger, in their order.
        inputs: What its trials read.
        start_id: See ``FolderFile``.
    """
    study = plan.study
    keys_of: dict[int, list[str]] = {}
    for trial, key in zip(plan.trials, keys, strict=True):
        keys_of.setdefault(trial.cell, []).append(key)
    return StudyFile(
        format_version=RECORD.version,
        start_id=start_id,
        name=study.name,
        title=study.title,
        digest=plan.digest,
        recipe=study.recipe,
        changes=study.changes,
        data=study.base().data.name,
        design=study.design.name,
        notes=study.design.notes(),
        seeds=study.seeds,
        purpose=study.purpose,
        significance=study.significance,
        power=study.power,
        smallest_effect=study.smallest_effect,
        metrics=study.metrics,
        blocks=plan.blocks,
        rows=plan.rows,
        cells=tuple(
            replace(cell, keys=tuple(keys_of[number])) for number, cell in enumerate(plan.cells)
        ),
        inputs=tuple({json.dumps(item): item for item in inputs}.values()),
        forecast=None,
    )


def is_same_state(one: StudyFile, other: StudyFile) -> bool:
    """Whether two states of a study have the same results; where not, the earlier one is kept."""
    first, second = (
        study.model_dump(mode="json", include={"cells", "inputs"}) for study in (one, other)
    )
    return first == second
