"""The reaction of a driver to events: store a trial's snapshot, fill MLflow, print progress."""

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
from sweeps.core.store.leases import SILENT_BEATS, Leases, LostLeaseError
from sweeps.core.store.ledger_entry import Origin
from sweeps.core.store.runs import Runs
from toco.files import is_no_room
from toco.room import NoRoomError, sentence_of

logger = logging.getLogger(__name__)


class Listener:
    """The receiver of every event of a run.

    An error in printing or in MLflow must not cost a result. So the methods that the backend calls
    turn errors into warnings, :meth:`check` excepted. Of the methods that the driver calls,
    ``publish``, ``settle``, ``waiting_for`` and ``remember_obstacle`` raise.

    Args:
        tasks: The trials that this driver leases, by key. Trials with the same values share a key
            and are one training. The driver changes this mapping.
        runs: Where results are stored.
        origin: Origin of the results, for the record.
        resources: Resources of a trial, for the record.
        leases: The leases of this driver.
        progress: Prints the progress line.
        mirror: Fills MLflow.
        page: Updates the report page; ``None`` where another driver does.
        trial_bytes: Bytes that a trial writes, for the message about a full storage; 0 where
            unknown.
        let_go: Called with the key of a trial that does not run any more, and whether it failed.
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

    # Events of the backend.

    def running(self, keys: Set[str]) -> None:
        """Note which trials run now. The backend calls this in every turn of its loop."""
        with errors_as_warnings("The progress line cannot be printed"):
            names = {key: self._name(key) for key in keys if key in self._tasks}
            self._progress.running(set(names.values()))
            if self._page is not None:
                steps = {key: self._progress.step_of(names[key]) for key in sorted(names)}
                self._page.progress(steps, self._progress.eta_s())

    def reported(self, key: str, row: Mapping[str, Any]) -> None:
        """Note an evaluation that a trial has reported."""
        name = self._name(key)
        with errors_as_warnings(f"The progress of {name} is unknown"):
            if "step" in row:
                self._progress.reported(name, int(row["step"]))

    def snapshot(self, key: str, snapshot: Path) -> None:
        """Store a snapshot of a trial."""
        # A trial that this driver has released has ended, or another driver runs it.
        if key in self._tasks:
            problem = (
                f"The run folder of {self._name(key)} could not be updated, which is tried again "
                "later"
            )
            with errors_as_warnings(problem), self.remember_obstacle():
                self.publish(key, snapshot)

    def lost(self, key: str, failure: Failure) -> None:
        """Note that a trial failed or lost its worker and will be started again."""
        self._note(key, failure)
        self.say(f"{self._name(key)} is started again: {failure.sentence}")

    def moved(self, key: str, host: str) -> None:
        """Note that a trial continues on another node, because its node is about to end."""
        self.say(f"{self._name(key)} continues on another node: {host} is about to end.")

    def stopping(self, number: int) -> None:
        """Note that this driver was asked to stop while ``number`` trials run."""
        trainings = "training writes" if number == 1 else "trainings write"
        self.say(
            f"Stopping: {number} {trainings} a checkpoint after the present step. Ctrl-C again "
            "ends at once."
        )

    def failed(self, key: str, failure: Failure) -> None:
        """Note that a trial has failed as often as it may."""
        self._note(key, failure)
        self.say(f"{self._name(key)} failed: {failure.sentence}")
        self.ended(key, failed=True)

    def ended(self, key: str, *, failed: bool = False) -> None:
        """Note that a trial does not run any more, for any reason."""
        with (
            errors_as_warnings(f"The end of {self._name(key)} could not be noted"),
            self.remember_obstacle(),
        ):
            self._let_go(key, failed)

    def stopped(self, key: str, step: int) -> None:
        """Note that a trial was stopped at a rung."""
        self.say(f"{self._name(key)} is stopped at rung {step}.")

    def say(self, text: str) -> None:
        """Print a line above the progress line."""
        with errors_as_warnings(f"A line could not be printed ({text})"):
            self._progress.say(text)

    def check(self) -> None:
        """Raise the error after which the driver cannot continue, if there was one.

        Raises:
            NoRoomError: A result could not be written, because the storage is full.
            LostLeaseError: This driver was suspended or cut off, and lost a lease. Another driver
                holds that lease now, or none does.
        """
        if self._obstacle is not None:
            raise self._obstacle

    # Calls of the driver.

    def publish(self, key: str, snapshot: Path) -> None:
        """Update a trial's run folder from ``snapshot``.

        If the trial has ended, it is entered into the ledger.

        Raises:
            LostLeaseError: This driver does not hold the trial's lease any more.
            OSError: The run folder or the ledger cannot be written.
        """
        self._leases.check(key)
        self._runs.publish(key, snapshot, self._leases.check)
        self._mirror.changed(key)
        # All trials of a key share one ledger entry, so the first stands for all.
        self.settle(self._tasks[key][0])

    def settle(self, task: Task) -> bool:
        """Enter a trial that has ended into the ledger; return whether the ledger has it.

        The trial's run folder says whether it has ended, and not an event: a trial may have ended
        under a driver that was lost before it wrote the entry.

        Raises:
            LostLeaseError: This driver does not hold the trial's lease any more.
            OSError: The ledger cannot be written.
        """
        self._leases.check(task.key)
        return self._runs.settle(task.key, task.identity, self._origin, self._resources)

    @contextmanager
    def remember_obstacle(self) -> Iterator[None]:
        """Store the first error after which no trial can continue, for :meth:`check`.

        The error is raised again, and the caller catches it: Ray Tune would take it for an error of
        the trial. :meth:`check` raises it where the driver can stop.
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
        """Note that this driver has released a trial that has a result, was stopped or failed."""
        with errors_as_warnings(f"The end of {task.name} could not be noted"):
            status = self._runs.status(task.key)
            self._progress.ended(task.name, failed=failed or status == "diverged")
            if self._page is not None:
                self._page.changed()
            # MLflow has the last state of a trial with a result; that of others is sent now.
            if status is None and (self._runs.ledger.run_dir(task.key) / "config.json").is_file():
                self._mirror.changed(task.key)

    def waiting_for(self, task: Task, number: int) -> None:
        """Say which driver runs the remaining trials, and once if that driver becomes silent.

        The driver calls this every few seconds; each message is printed once.

        Args:
            task: One of these trials.
            number: Number of these trials.
        """
        holder, silent_s = self._leases.holder(task.key), self._leases.silence_s(task.key)
        if holder is not None and "first" not in self._said:
            self._said.add("first")
            names = f"{number} trials, {task.name} among them, are"
            if number == 1:
                names = f"{task.name} is"
            self.say(f"{names} run by another driver: {holder}. Waiting.")
        if (
            holder is not None
            and silent_s > SILENT_BEATS * self._leases.beat_every_s
            and holder not in self._said
        ):
            self._said.add(holder)
            self.say(
                f"There was no sign of life of {holder} for {silent_s:.0f} s; its trials are taken "
                f"over after {self._leases.expires_s:.0f} s."
            )

    def _note(self, key: str, failure: Failure) -> None:
        problem = f"A failure of {self._name(key)} could not be noted"
        with errors_as_warnings(problem), self.remember_obstacle():
            self._leases.check(key)
            self._runs.ledger.add_failure(key, failure.reason, failure.trace, host=failure.host)

    def _name(self, key: str) -> str:
        return self._tasks[key][0].name if key in self._tasks else key


@contextmanager
def errors_as_warnings(problem: str) -> Iterator[None]:
    """Turn any error of the block into a logged warning; an interruption passes."""
    try:
        yield
    except Exception as error:  # whatever it was, the trainings are worth more
        logger.warning("%s: %r", problem, error)
