"""MLflow, filled from the run folders in a thread of its own, so that a slow store never holds a study up."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from sweeps.core.situation import Situation
from sweeps.core.study_folder import StudyFolder
from toco.tracking import Tracker, import_mlflow


class Sender(ABC):
    """Keeps a parent run and a child run for every trial up to date with the run folders.

    The ledger is the record. What cannot be sent is sent with the next change of that trial, and once more at the end.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._parent: str | None = None
        self._changed: dict[str, None] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)

    @abstractmethod
    def _begun(self) -> Iterable[str]:
        """Keys of the trials that have a run folder."""

    @abstractmethod
    def _ensure_parent(self, *, last: bool) -> str | None:
        """The id of the parent run; ``None`` where the store is gone."""

    @abstractmethod
    def _track(self, key: str, parent: str, *, last: bool) -> bool:
        """Send a trial; says whether it could be done."""

    def start(self) -> None:
        """Open the store and begin, with what earlier starts left."""
        for key in self._begun():
            self.changed(key)
        import_mlflow()
        self._thread.start()

    def changed(self, key: str) -> None:
        """The run folder of a trial has something new."""
        with self._wake:
            self._changed[key] = None
            self._wake.notify()

    def close(self, files: Iterable[Path], status: str, note: str | None = None) -> bool:
        """Send what is left and end the parent run; says whether MLflow has everything.

        Args:
            files: Report and table.
            status: MLflow's own: ``FINISHED``, ``FAILED`` or ``KILLED``.
            note: The run's description, in Markdown.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        # Even with a parent: a store that is gone by now would cost every trial its time limits.
        self._parent = self._ensure_parent(last=True)
        if self._parent is None:
            return False
        sent = [self._send(name, last=True) for name in self._changed]
        return self._tracker.finish_parent(self._parent, files, status, note) and all(sent)

    def _work(self) -> None:
        self._parent = self._ensure_parent(last=False)
        failed: dict[str, None] = {}
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._changed or self._closing)
                if not self._changed or self._closing:
                    self._changed |= failed
                    return
                name = next(iter(self._changed))
                del self._changed[name]
            if not self._send(name, last=False):
                failed[name] = None
            else:
                failed.pop(name, None)

    def _send(self, key: str, *, last: bool) -> bool:
        if self._parent is None:
            # The store was gone at the start and may be back.
            self._parent = self._ensure_parent(last=last)
        return self._parent is not None and self._track(key, self._parent, last=last)


class Mirror(Sender):
    """Sends a study."""

    def __init__(self, tracker: Tracker, folder: StudyFolder, situation: Situation) -> None:
        super().__init__(tracker)
        self._folder = folder
        self._plan = situation.plan
        self._run_dir = situation.ledger.run_dir
        self._trials = dict(zip(situation.keys, situation.plan.trials, strict=True))

    def _begun(self) -> Iterable[str]:
        return [key for key in self._trials if self._run_dir(key).is_dir()]

    def _ensure_parent(self, *, last: bool) -> str | None:
        study = self._plan.study
        parent = self._tracker.ensure_parent(
            self._folder.start_id,
            self._plan.folder_name,
            {"study": study.name, "digest": self._plan.digest, "recipe": study.recipe, "role": "study"},
            last=last,
        )
        if parent is not None and (page := self._tracker.page()) is not None:
            self._folder.write_mlflow_page(page)
        return parent

    def _track(self, key: str, parent: str, *, last: bool) -> bool:
        trial = self._trials[key]
        cell = self._plan.cells[trial.cell]
        # Tags by which the runs of a study can be grouped in MLflow; parameters have them too, among sixty others.
        factors = {f"factor.{path}": str(value) for path, value in cell.changes.items()}
        sent = self._tracker.track(
            self._run_dir(key),
            parent_run_id=parent,
            run_name=trial.name,
            tags={"study": self._plan.study.name, "cell": trial.label, "role": "trial", "key": key, **factors},
            last=last,
        )
        return sent is not None
