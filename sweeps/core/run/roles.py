"""The roles beside the driver: a proposer decides what is computed next, a backend runs it on workers."""

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
    """Decides what is computed next. It is asked again after each end, so that results so far can count.

    Attributes:
        trials: All trials that are known, by key; more may come.
    """

    trials: Mapping[str, Task]

    def propose(self, *, is_idle: bool) -> Collection[Task]:
        """Trials that can start now and were not proposed before.

        Args:
            is_idle: Whether a worker waits for a trial. Who chooses by the results so far chooses
                then, not before.
        """

    @property
    def is_done(self) -> bool:
        """Whether nothing more will be proposed unless a trial ends."""

    def may_start(self, task: Task) -> bool:
        """Judge a trial, whose lease the driver holds, by what its run folder has; says whether it is to run."""
        return True

    def goes_on(self, key: str, row: Mapping[str, Any]) -> bool:
        """Whether a running trial goes on after what it has reported."""
        return True

    def ended(self, key: str) -> bool:
        """A trial does not run any more; says whether it has an end: a result, or it was to be stopped."""

    def failed(self, key: str) -> None:
        """A trial has failed as often as it may."""
        self.give_up(key)

    def give_up(self, key: str) -> None:
        """What became of a trial cannot be stored."""

    def unfinished(self) -> list[Task]:
        """Trials without an end."""

    def progress(self) -> Progress:
        """The progress line of all trials, as they stand."""


class TrialQueue(Protocol):
    """Where a backend gets trials: the driver."""

    def next(self) -> Spec | None:
        """The next trial for a worker; ``None`` where there is none now. Others are brought to their end here."""

    @property
    def is_done(self) -> bool:
        """Whether there is nothing more to begin."""

    def goes_on(self, key: str, row: Mapping[str, Any]) -> bool:
        """Whether a running trial goes on after what it has reported."""


class Backend(Protocol):
    """Runs trials on workers."""

    def run(
        self, queue: TrialQueue, listener: Listener, runs: Runs, session: Path, name: str
    ) -> None:
        """Run what ``queue`` has, until it is done.

        Args:
            queue: Asked whenever a worker is free.
            listener: Told of everything.
            runs: Where the run folders are.
            session: A folder of this call alone, seen by all nodes.
            name: Of the study.

        Raises:
            NoRoomError: The storage, or every node, is full.
            LostLeaseError: Another driver runs the trials now.
            KeyboardInterrupt: Somebody has stopped the driver.
        """


Connect = Callable[[Launch], AbstractContextManager[Backend]]
"""Connects to the workers of a launch, for the time of a context."""
