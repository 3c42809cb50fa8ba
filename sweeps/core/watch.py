"""What the driver does when something happens to a trial: publish its snapshot, tell MLflow, print progress."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeps.core.mirror import Mirror
from sweeps.core.progress import Progress
from sweeps.core.study_folder import StudyFolder

logger = logging.getLogger(__name__)


class Watch:
    """Told of every event of a study. No method raises: a full disk or a lost tracker must not end the trainings."""

    def __init__(self, folder: StudyFolder, progress: Progress, mirror: Mirror | None) -> None:
        self._folder = folder
        self._progress = progress
        self._mirror = mirror

    def running(self, names: Set[str]) -> None:
        """These trials run now; called all the time."""
        with _carrying_on("The progress line cannot be printed"):
            self._progress.running(names)

    def reported(self, name: str, row: Mapping[str, Any]) -> None:
        """A trial has reported an evaluation."""
        with _carrying_on(f"The progress of {name} is unknown"):
            if "step" in row:
                self._progress.reported(name, int(row["step"]))

    def snapshot(self, name: str, snapshot: Path) -> None:
        """A trial's snapshot is in storage."""
        with _carrying_on(f"The run folder of {name} could not be updated, which is tried again later"):
            self._folder.publish(name, snapshot)
            if self._mirror is not None:
                self._mirror.changed(name)

    def lost(self, name: str, reason: str) -> None:
        """A trial failed or lost its worker and will be started again."""
        self._say(f"{name} is started again: {reason}")

    def failed(self, name: str, reason: str) -> None:
        """A trial has failed as often as it may."""
        self._say(f"{name} failed: {reason}")
        self.ended(name)

    def ended(self, name: str) -> None:
        """A trial will not run any more, however it ended."""
        with _carrying_on(f"The end of {name} could not be noted"):
            self._progress.ended(name, failed=self._folder.status(name) != "finished")

    def _say(self, text: str) -> None:
        with _carrying_on(f"A line could not be printed ({text})"):
            self._progress.say(text)


@contextmanager
def _carrying_on(problem: str) -> Iterator[None]:
    """Turn any exception into a warning."""
    try:
        yield
    except Exception as error:  # whatever it was, the trainings are worth more
        logger.warning("%s: %r", problem, error)
