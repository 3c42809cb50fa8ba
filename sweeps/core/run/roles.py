"""The roles around the driver: a proposer decides what is computed next, a backend runs it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import Task
from sweeps.core.run.listener import Listener
from sweeps.core.run.progress import Progress
from sweeps.core.run.worker import Spec
from sweeps.core.store.runs import Runs


class Proposer(Protocol):
    """Decide what is computed next.

    The driver asks again after the end of each trial, so that all results so far can count.

    Attributes:
        trials: All trials proposed so far, by key. More may be added.
    """

    trials: Mapping[str, Task]

    def propose(self, *, is_idle: bool) -> Collection[Task]:
        """Return trials that can start now and were not proposed before.

        Args:
            is_idle: Whether a worker waits for a trial. A proposer that chooses by the results so
                far chooses only then.
        """

    @property
    def is_done(self) -> bool:
        """Whether no trial will be proposed before another one ends."""

    @property
    def is_at_last_look(self) -> bool:
        """Whether no results so far can make further trials necessary."""
        return True

    def may_start(self, task: Task) -> bool:
        """Judge a leased trial by its run folder; return whether it has to run."""
        return True

    def goes_on(self, key: str, row: Mapping[str, Any]) -> bool:
        """Return whether a running trial continues after its last report."""
        return True

    def ended(self, key: str) -> bool:
        """Handle the end of a trial's run; return whether the trial is complete.

        A trial is complete if it has a result or was stopped at a rung.
        """

    def failed(self, key: str) -> None:
        """Handle a trial that has failed as often as it may."""
        self.give_up(key)

    def give_up(self, key: str) -> None:
        """Give up a trial whose result cannot be stored."""

    def news(self) -> list[str]:
        """Return what was decided since the last call, a line each."""
        return []

    def unfinished(self) -> list[Task]:
        """Return the trials that are not complete."""

    def remarks(self) -> list[str]:
        """Return sentences about the whole run, for its end."""
        return []

    def progress(self) -> Progress:
        """Return the progress line of all trials, in their present state."""


class TrialQueue(Protocol):
    """Where a backend gets its trials: the driver."""

    def next(self) -> Spec | None:
        """Return the next trial for a worker, or ``None`` where none is ready.

        Trials that need no worker are completed during this call.
        """

    @property
    def is_done(self) -> bool:
        """Whether all trials have ended, or an error ends the run."""

    def goes_on(self, key: str, row: Mapping[str, Any]) -> bool:
        """Return whether a running trial continues after its last report."""


class Backend(Protocol):
    """Run trials on workers."""

    def run(
        self, queue: TrialQueue, listener: Listener, runs: Runs, session: Path, name: str
    ) -> None:
        """Run the trials of ``queue`` until it is done.

        Args:
            queue: Asked whenever a worker is free.
            listener: Receives every event.
            runs: Where the run folders are.
            session: A folder for this call alone, which all nodes see.
            name: Name of the study.

        Raises:
            NoRoomError: The storage, or every node, is full.
            LostLeaseError: Another driver runs the trials now.
            KeyboardInterrupt: The driver was interrupted.
        """


Connect = Callable[[Launch], AbstractContextManager[Backend]]
"""Connects to the workers of a launch, for the duration of a context."""
