"""The study's folder: its plan and its report. All studies share the ledger next to it.

::

    study.json       the study: rows, configurations, seeds, keys in the ledger, inputs of trials
    progress.json    the progress of a running driver
    mlflow.json      where MLflow shows the study
    history/         earlier states of study.json (other code or data), and unreadable ones
    report.html ...  see sweeps.core.report
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
from sweeps.core.store.budget_record import BudgetStop
from sweeps.core.store.first_writer import write_first
from sweeps.core.store.folder_record import HISTORY, read_optional
from sweeps.core.store.forecast_record import Forecast
from sweeps.core.store.identity import InputDigests
from sweeps.core.store.study_record import (
    MLFLOW_FILE,
    PROGRESS_FILE,
    RECORD,
    MlflowLinks,
    ProgressFile,
    StudyFile,
)
from toco.files import UnreadableError, VersionError, is_sealed, write_text
from toco.tracking import Pages

logger = logging.getLogger(__name__)


class StudyFolder:
    """Read and write one study's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Try to become the driver that writes the report; yield whether this one is.

        Other drivers can train without it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                # The process holds the lock, so that no crash can leave it behind.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def write_study(
        self,
        plan: Plan,
        keys: Sequence[str],
        inputs: Sequence[InputDigests],
        forecast: Forecast | None,
    ) -> None:
        """Write ``study.json``, unless the stored one is equal.

        If the stored one has other configurations, keys or inputs, it is copied to ``history/``.
        Otherwise its forecast stays, because the forecast of the first start is compared with the
        measured cost at the end. Its stop by a budget stays, too. A record that cannot be read is
        moved to ``history/``, with a warning.

        Args:
            plan: The study.
            keys: Keys of its trials in the ledger, in their order.
            inputs: Digests of the files that its trials read, see ``sweeps.core.store.identity``.
            forecast: The predicted cost.
        """

        def make(stored: StudyFile | None, start_id: str) -> StudyFile:
            present = study_file(plan, keys, inputs, start_id)
            is_same = stored is not None and is_same_state(stored, present)
            if stored is not None and not is_same:
                self._keep(stored)
            if stored is None or not is_same:
                return present.model_copy(update={"forecast": forecast})
            return present.model_copy(
                update={"forecast": stored.forecast or forecast, "stopped": stored.stopped}
            )

        RECORD.write(self.path, make)

    def write_stop(self, stop: BudgetStop | None) -> None:
        """Write into ``study.json`` that a budget stopped the study, or that it goes on."""

        def make(stored: StudyFile | None, _start_id: str) -> StudyFile:
            assert stored is not None  # noqa: S101 - ``write_study`` comes first
            return stored.model_copy(update={"stopped": stop})

        RECORD.write(self.path, make)

    def write_progress(
        self, steps: Mapping[str, int], eta_s: float | None, *, running: bool
    ) -> None:
        """Write ``progress.json``.

        Args:
            steps: Steps done by each running trial, by key.
            eta_s: Predicted seconds to the end; ``None`` where unknown.
            running: Whether the driver still runs.
        """
        progress = ProgressFile(running=running, steps=steps, eta_s=eta_s)
        write_text(self.path / PROGRESS_FILE, progress.text(), durable=False)

    def write_mlflow_links(self, pages: Pages, runs: Mapping[str, str]) -> None:
        """Write where MLflow's UI shows the study, for the links of the report.

        Args:
            pages: Addresses of its experiment.
            runs: Ids of MLflow runs by the keys of trials. Links that were written before stay.
        """
        stored = read_optional(self.path / MLFLOW_FILE, MlflowLinks)
        links = MlflowLinks(host=pages.host, experiment_id=pages.experiment_id, runs=runs)
        if stored is not None and stored.pages == pages:
            links = links.model_copy(update={"runs": {**stored.runs, **runs}})
        if stored != links:
            write_text(self.path / MLFLOW_FILE, links.text(), durable=False)

    def stored(self) -> StudyFile | None:
        """Read ``study.json``; ``None`` where it is missing or, with a warning, damaged.

        Nothing is written.

        Raises:
            ValueError: The file has another version.
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
        """Identifies the start of the study: equal after a restart, different in another folder."""
        return RECORD.read(self.path / RECORD.file).start_id

    def history(self) -> list[Path]:
        """Return the earlier states of ``study.json``, oldest first."""
        return sorted((self.path / HISTORY).glob("*.json"))

    def _keep(self, study: StudyFile) -> None:
        """Copy an earlier state of ``study.json`` to ``history/``, unless it is the newest there.

        Another driver may have copied it.
        """
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
    plan: Plan, keys: Sequence[str], inputs: Sequence[InputDigests], start_id: str
) -> StudyFile:
    """Return the content of ``study.json`` for a plan, without a forecast.

    Args:
        plan: The study.
        keys: Keys of its trials in the ledger, in their order.
        inputs: Digests of the files that its trials read.
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
        seeds=study.all_seeds,
        sequential=study.sequential,
        margin=study.margin,
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


def is_same_state(state: StudyFile, other_state: StudyFile) -> bool:
    """Return whether two states of a study have equal configurations, keys and inputs.

    Equal keys in the ledger mean the same results.
    """
    first, second = (
        study.model_dump(mode="json", include={"cells", "inputs"}) for study in (state, other_state)
    )
    return first == second
