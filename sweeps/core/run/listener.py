"""What the driver does when something happens to a trial: publish its snapshot, tell MLflow, print progress."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeps.core.plan.survey import Situation, Task
from sweeps.core.run.failures import Failure, LeftOut
from sweeps.core.run.live_page import LivePage
from sweeps.core.run.mlflow_mirror import Mirror
from sweeps.core.run.obstacle import Obstacle
from sweeps.core.run.progress import Progress
from sweeps.core.store.leases import Leases
from sweeps.core.store.ledger_entry import Origin

logger = logging.getLogger(__name__)

SILENT_BEATS = 2
"""A driver that others wait for is said to be silent after so many heart-beats were missed."""


class Watch:
    """Told of every event of a study. No method but ``settle`` and ``check`` raises.

    Args:
        situation: The study and its ledger.
        progress: Prints the progress line.
        mirror: Fills MLflow.
        page: Keeps the page up to date; ``None`` where another driver does.
        resources: What a trial gets, for the record.
        check: Raises LostLeaseError where this driver has lost the lease of a key, as one that was suspended may have.
        obstacle: Keeps the error after which the driver cannot go on.
    """

    def __init__(
        self,
        situation: Situation,
        progress: Progress,
        mirror: Mirror,
        page: LivePage | None,
        resources: Mapping[str, Any],
        check: Callable[[str], None],
        obstacle: Obstacle,
    ) -> None:
        self._runs = situation.runs
        self._names = {key: trial.name for key, trial in zip(situation.keys, situation.plan.trials, strict=True)}
        self._tasks: dict[str, Task] = {}
        self._study = situation.plan.study
        self._progress = progress
        self._mirror = mirror
        self._page = page
        self._resources = dict(resources)
        self._check = check
        self._waiting: set[str] = set()
        self._obstacle = obstacle

    def expect(self, tasks: Iterable[Task]) -> None:
        """These tasks are about to run."""
        self._tasks |= {task.key: task for task in tasks}

    def running(self, keys: Set[str]) -> None:
        """These trials run now; called all the time."""
        with carrying_on("The progress line cannot be printed"):
            self._progress.running(keys)
            if self._page is not None:
                self._page.progress(self._progress.steps_of_running(), self._progress.eta_s())

    def reported(self, key: str, row: Mapping[str, Any]) -> None:
        """A trial has reported an evaluation."""
        with carrying_on(f"The progress of {self._names[key]} is unknown"):
            if "step" in row:
                self._progress.reported(key, int(row["step"]))

    def snapshot(self, key: str, snapshot: Path) -> None:
        """A trial's snapshot is in storage."""
        what = f"The run folder of {self._names[key]} could not be updated, which is tried again later"
        with carrying_on(what), self._obstacle.noted():
            self._check(key)
            self._runs.publish(key, snapshot, self._check)
            self._mirror.changed(key)
            self.settle(self._tasks[key])

    def settle(self, task: Task) -> bool:
        """Enter a trial into the ledger if its run folder says that it has ended; says whether it is there.

        Raises:
            LostLeaseError: Another driver has taken the trial over.
            OSError: The ledger cannot be written.
        """
        self._check(task.key)
        origin = Origin(self._study.name, self._study.recipe)
        return self._runs.settle(task.key, task.identity, origin, self._resources)

    def check(self) -> None:
        """See whether the driver may go on; raises as ``Obstacle.check``."""
        self._obstacle.check()

    def waiting_for(self, key: str, number: int, holder: str | None, silent_s: float, leases: Leases) -> None:
        """Everything left, ``number`` trials, is run by other drivers; called every few seconds.

        Args:
            key: One of the trials.
            number: How many there are.
            holder: Who holds the lease of ``key``.
            silent_s: For how long there was no sign of life of the holder.
            leases: How long they live.
        """
        name = self._names[key]
        if holder is not None and "first" not in self._waiting:
            self._waiting.add("first")
            self._say(f"{number} trials, {name} among them, are run by another driver: {holder}. Waiting.")
        if holder is not None and silent_s > SILENT_BEATS * leases.beat_every_s and holder not in self._waiting:
            self._waiting.add(holder)
            self._say(
                f"There was no sign of life of {holder} for {silent_s:.0f} s; its trials are taken over after "
                f"{leases.expires_s:.0f} s."
            )

    def lost(self, key: str, failure: Failure) -> None:
        """A trial failed or lost its worker and will be started again."""
        self._note(key, failure)
        self._say(f"{self._names[key]} is started again: {failure.sentence}")

    def failed(self, key: str, failure: Failure) -> None:
        """A trial has failed as often as it may."""
        self._note(key, failure)
        self._say(f"{self._names[key]} failed: {failure.sentence}")
        self.ended(key)

    def left_out(self, node: LeftOut) -> None:
        """A node gets no more trials."""
        self._say(node.sentence)

    def _note(self, key: str, failure: Failure) -> None:
        what = f"A failure of {self._names[key]} could not be noted"
        with carrying_on(what), self._obstacle.noted():
            self._check(key)
            self._runs.ledger.add_failure(key, failure.reason, failure.trace, host=failure.host)

    def ended(self, key: str) -> None:
        """A trial will not run any more, however it ended."""
        with carrying_on(f"The end of {self._names[key]} could not be noted"):
            self._progress.ended(key, failed=self._runs.status(key) != "finished")
            if self._page is not None:
                self._page.changed()

    def _say(self, text: str) -> None:
        with carrying_on(f"A line could not be printed ({text})"):
            self._progress.say(text)


@contextmanager
def carrying_on(problem: str) -> Iterator[None]:
    """Turn any exception into a warning."""
    try:
        yield
    except Exception as error:  # whatever it was, the trainings are worth more
        logger.warning("%s: %r", problem, error)
