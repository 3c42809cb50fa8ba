"""What a driver does when something happens to a trial: store its snapshot, tell MLflow, print progress."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeps.core.plan.survey import Task
from sweeps.core.run.failures import Failure
from sweeps.core.run.live_page import LivePage
from sweeps.core.run.mlflow_mirror import Mirror
from sweeps.core.run.progress import Progress
from sweeps.core.store.leases import Leases, LostLeaseError
from sweeps.core.store.ledger_entry import Origin
from sweeps.core.store.runs import Runs
from toco.files import is_no_room
from toco.room import NoRoomError, sentence_of

logger = logging.getLogger(__name__)

SILENT_BEATS = 2
"""A driver that others wait for is said to be silent after so many heart-beats were missed."""


class Listener:
    """Told of every event. No method but ``publish``, ``settle`` and ``check`` raises: results must not be lost.

    Args:
        tasks: The trials that this driver has now, by key; several where they are one training. The
            driver changes it.
        runs: Where results are stored.
        origin: Of the results, for the record.
        resources: What a trial gets, for the record.
        leases: The driver's.
        progress: Prints the progress line.
        mirror: Fills MLflow.
        page: Keeps the page up to date; ``None`` where another driver does.
        trial_bytes: What a trial writes, for the sentence about a full storage; 0 where that is not
            known.
        let_go: Called with the key of a trial that does not run any more, and whether it has
            failed.
    """

    def __init__(
        self,
        tasks: Mapping[str, Sequence[Task]],
        *,
        runs: Runs,
        origin: Origin,
        resources: Mapping[str, Any],
        leases: Leases,
        progress: Progress,
        mirror: Mirror,
        page: LivePage | None,
        trial_bytes: int,
        let_go: Callable[[str, bool], None],
    ) -> None:
        self._tasks = tasks
        self._runs = runs
        self._origin = origin
        self._resources = dict(resources)
        self._leases = leases
        self._progress = progress
        self._mirror = mirror
        self._page = page
        self._trial_bytes = trial_bytes
        self._obstacle: NoRoomError | LostLeaseError | None = None
        self._let_go = let_go
        self._said: set[str] = set()

    # What the backend tells.

    def running(self, keys: Set[str]) -> None:
        """These trials run now; called all the time."""
        with carrying_on("The progress line cannot be printed"):
            names = {key: self._name(key) for key in keys if key in self._tasks}
            self._progress.running(set(names.values()))
            if self._page is not None:
                steps = {key: self._progress.step_of(names[key]) for key in sorted(names)}
                self._page.progress(steps, self._progress.eta_s())

    def reported(self, key: str, row: Mapping[str, Any]) -> None:
        """A trial has reported an evaluation."""
        name = self._name(key)
        with carrying_on(f"The progress of {name} is unknown"):
            if "step" in row:
                self._progress.reported(name, int(row["step"]))

    def snapshot(self, key: str, snapshot: Path) -> None:
        """A trial's snapshot has arrived."""
        # One that this driver let go is not its own any more.
        if key in self._tasks:
            problem = f"The run folder of {self._name(key)} could not be updated, which is tried again later"
            with carrying_on(problem), self.noting():
                self.publish(key, snapshot)

    def lost(self, key: str, failure: Failure) -> None:
        """A trial failed or lost its worker and will be started again."""
        self._note(key, failure)
        self.say(f"{self._name(key)} is started again: {failure.sentence}")

    def failed(self, key: str, failure: Failure) -> None:
        """A trial has failed as often as it may."""
        self._note(key, failure)
        self.say(f"{self._name(key)} failed: {failure.sentence}")
        self.ended(key, failed=True)

    def ended(self, key: str, *, failed: bool = False) -> None:
        """A trial will not run any more, however it ended."""
        with carrying_on(f"The end of {self._name(key)} could not be noted"), self.noting():
            self._let_go(key, failed)

    def stopped(self, key: str, step: int) -> None:
        """A trial does not go on after a rung."""
        self.say(f"{self._name(key)} is stopped at rung {step}.")

    def say(self, text: str) -> None:
        """Print a line beside the progress line."""
        with carrying_on(f"A line could not be printed ({text})"):
            self._progress.say(text)

    def check(self) -> None:
        """See whether the driver may go on.

        Raises:
            NoRoomError: A result could not be written, since the storage is full.
            LostLeaseError: This driver was suspended, and another one runs its trials now.
        """
        if self._obstacle is not None:
            raise self._obstacle

    # What the driver tells.

    def publish(self, key: str, snapshot: Path) -> None:
        """Bring a trial's run folder to the state of ``snapshot``, and enter the trial into the ledger if it has ended.

        Raises:
            LostLeaseError: Another driver has taken the trial over.
            OSError: The run folder or the ledger cannot be written.
        """
        self._leases.check(key)
        self._runs.publish(key, snapshot, self._leases.check)
        self._mirror.changed(key)
        self.settle(self._tasks[key][0])

    def settle(self, task: Task) -> bool:
        """Enter a trial into the ledger if its run folder says that it has ended; says whether it is entered.

        Raises:
            LostLeaseError: Another driver has taken the trial over.
            OSError: The ledger cannot be written.
        """
        self._leases.check(task.key)
        return self._runs.settle(task.key, task.identity, self._origin, self._resources)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Keep an error of the block after which no trial can go on, for :meth:`check`; the first counts.

        The error is raised all the same, but Ray Tune would take one in a callback for an error of
        the trial.
        """
        try:
            yield
        except LostLeaseError as error:
            self._obstacle = self._obstacle or error
            raise
        except OSError as error:
            if is_no_room(error) and self._obstacle is None:
                sentence = sentence_of(self._runs.ledger.storage, self._trial_bytes, error)
                self._obstacle = error if isinstance(error, NoRoomError) else NoRoomError(sentence)
            raise

    def closed(self, task: Task, *, failed: bool) -> None:
        """This driver has let a trial go that has a result, was stopped or failed."""
        with carrying_on(f"The end of {task.name} could not be noted"):
            status = self._runs.status(task.key)
            self._progress.ended(task.name, failed=failed or status == "diverged")
            if self._page is not None:
                self._page.changed()
            # Only one that has ended was published last of all.
            if status is None and (self._runs.ledger.run_dir(task.key) / "config.json").is_file():
                self._mirror.changed(task.key)

    def waiting_for(self, task: Task, number: int) -> None:
        """Everything left, ``number`` trials, is run by other drivers; called every few seconds.

        Args:
            task: One of the trials.
            number: How many there are.
        """
        holder, silent_s = self._leases.holder(task.key), self._leases.silence_s(task.key)
        if holder is not None and "first" not in self._said:
            self._said.add("first")
            self.say(
                f"{number} trials, {task.name} among them, are run by another driver: {holder}. Waiting."
            )
        if (
            holder is not None
            and silent_s > SILENT_BEATS * self._leases.beat_every_s
            and holder not in self._said
        ):
            self._said.add(holder)
            self.say(
                f"There was no sign of life of {holder} for {silent_s:.0f} s; its trials are taken over after "
                f"{self._leases.expires_s:.0f} s."
            )

    def _note(self, key: str, failure: Failure) -> None:
        problem = f"A failure of {self._name(key)} could not be noted"
        with carrying_on(problem), self.noting():
            self._leases.check(key)
            self._runs.ledger.add_failure(key, failure.reason, failure.trace, host=failure.host)

    def _name(self, key: str) -> str:
        return self._tasks[key][0].name if key in self._tasks else key


@contextmanager
def carrying_on(problem: str) -> Iterator[None]:
    """Turn any exception into a warning."""
    try:
        yield
    except Exception as error:  # whatever it was, the trainings are worth more
        logger.warning("%s: %r", problem, error)
