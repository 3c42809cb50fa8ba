"""MLflow, filled from the run folders in a thread of its own, so that a slow store never holds a study up."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from sweeps.core.study import Plan
from sweeps.core.study_folder import StudyFolder
from toco.tracking import Tracker, import_mlflow


class Mirror:
    """Keeps a parent run for the study and a child run for every trial up to date with the study's folder.

    The folder is the record. What cannot be sent is sent with the next change of that trial, and once more at the end.
    """

    def __init__(self, tracker: Tracker, folder: StudyFolder, plan: Plan) -> None:
        self._tracker = tracker
        self._folder = folder
        self._plan = plan
        self._trials = {trial.name: trial for trial in plan.trials}
        self._parent: str | None = None
        self._changed: dict[str, None] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)

    def start(self) -> None:
        """Open the store and begin, with what earlier starts left."""
        for name in self._trials:
            if self._folder.run_dir(name).is_dir():
                self.changed(name)
        import_mlflow()
        self._thread.start()

    def changed(self, trial_name: str) -> None:
        """The run folder of a trial has something new."""
        with self._wake:
            self._changed[trial_name] = None
            self._wake.notify()

    def close(self, files: Iterable[Path], status: str) -> bool:
        """Send what is left and end the parent run with MLflow's ``status``; says whether MLflow has everything."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        # Even with a parent: a store that is gone by now would cost every trial its time limits.
        self._parent = self._ensure_parent(last=True)
        if self._parent is None:
            return False
        sent = [self._send(name, last=True) for name in self._changed]
        return self._tracker.finish_parent(self._parent, files, status) and all(sent)

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

    def _ensure_parent(self, *, last: bool) -> str | None:
        study = self._plan.study
        return self._tracker.ensure_parent(
            self._folder.start_id,
            self._plan.folder_name,
            {"study": study.name, "digest": self._plan.digest, "recipe": study.recipe, "role": "study"},
            last=last,
        )

    def _send(self, name: str, *, last: bool) -> bool:
        if self._parent is None:
            # The store was gone at the start and may be back.
            self._parent = self._ensure_parent(last=last)
        if self._parent is None:
            return False
        trial = self._trials[name]
        sent = self._tracker.track(
            self._folder.run_dir(name),
            parent_run_id=self._parent,
            run_name=f"{trial.label} seed {trial.seed}",
            tags={"study": self._plan.study.name, "cell": trial.label, "role": "trial"},
            last=last,
        )
        return sent is not None
