"""Decide what a study computes next: the trials of its design that the ledger does not have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from itertools import pairwise

from sweeps.core.findings.look_text import look_sentence
from sweeps.core.plan.budget import Budget
from sweeps.core.plan.survey import Situation, Task
from sweeps.core.run.progress import Progress
from sweeps.core.run.roles import Proposer
from sweeps.core.store.budget_record import BudgetStop
from sweeps.core.store.runs import newest_step


class StudyProposer(Proposer):
    """Propose the trials of a study.

    All trials that can start are proposed at once. Some trials follow from the stored evaluations
    or checkpoints of a training: they are proposed when that training has ended. A sequential study
    gets the trials of its next look when the present look is complete.

    Args:
        situation: The study.
        ahead: Whether a free worker starts a training of the next look of a sequential study before
            the present look is complete. It is wasted where its claims are decided at the present
            look.
        budget: Decides whether a further look may start; ``None`` for no limit.

    Attributes:
        trials: The trials of the study so far, by key.
        stop: Why the study asks for no further look; ``None`` as long as it does.
    """

    def __init__(
        self, situation: Situation, *, ahead: bool = False, budget: Budget | None = None
    ) -> None:
        self._situation = situation
        self._sequential = situation.plan.study.sequential
        self._ahead = ahead and self._sequential is not None
        self._budget = budget
        self.stop: BudgetStop | None = None
        self.trials: dict[str, Task] = {}
        # The trials of one training belong together: only one of them is trained.
        self._groups: dict[str, list[Task]] = defaultdict(list)
        self._open: dict[str, Task] = {}
        self._given_up: set[str] = set()
        # Trials whose evaluation of a stored training failed, so that they are trained.
        self._afresh: set[str] = set()
        # Trainings that have a trial that may be ready to start.
        self._unasked: dict[str, None] = {}
        # Looks that are over, and those that were told. Looks of earlier starts are no news.
        self._num_looks = 0 if self._sequential is None else situation.looks().num_done
        self._num_told = self._num_looks
        # Trials of the next look that only a free worker starts, by training; ``None`` before the
        # first free worker of the present look.
        self._next_look: dict[str, list[Task]] | None = None
        self._add_needed()

    def propose(self, *, is_idle: bool) -> Collection[Task]:
        """Return the trials that can start now, of trainings where a trial has ended since.

        Args:
            is_idle: Whether a worker is free, for a study that works ahead.
        """
        if self._sequential is not None and self._unasked:
            self._replay()
        ready = self._ready()
        if self._ahead and is_idle and not ready:
            self._work_ahead()
            ready = self._ready()
        return ready

    @property
    def is_done(self) -> bool:
        """Whether no trial has ended since the last proposal."""
        return not self._unasked

    @property
    def is_at_last_look(self) -> bool:
        """Whether no look follows the present one."""
        return (
            self._sequential is None
            or self.stop is not None
            or self._num_looks >= len(self._sequential.looks) - 1
        )

    def ended(self, key: str) -> bool:
        """Handle the end of a trial's run; return whether the ledger has the trial."""
        self._close(key)
        return self._situation.ledger.entry(key) is not None

    def failed(self, key: str) -> None:
        """Handle a failed trial: train one that was evaluated, give up any other."""
        task = self._close(key)
        (self._given_up if task.source is None else self._afresh).add(key)

    def give_up(self, key: str) -> None:
        """Give up a trial whose result cannot be stored."""
        self._given_up.add(key)

    def news(self) -> list[str]:
        """Return what the looks since the last call have decided, a line each."""
        if self._sequential is None or self._num_told == self._num_looks:
            return []
        states = self._situation.past_looks()[self._num_told : self._num_looks + 1]
        self._num_told = self._num_looks
        return [
            look_sentence(before, after, self._sequential.looks)
            for before, after in pairwise(states)
        ]

    def unfinished(self) -> list[Task]:
        """Return the trials that the study needs and the ledger does not have."""
        missing = self._situation.missing()
        if self.stop is None:
            return missing
        # Those of the look that does not start are not needed.
        return [task for task in missing if task.key in self.trials]

    def remarks(self) -> list[str]:
        """Say how many trainings of this start a look has made needless."""
        if not self._ahead:
            return []
        beyond = self.trials.keys() - self._situation.trials().keys()
        entries = [self._situation.ledger.entry(key) for key in beyond]
        number = sum(entry is not None and entry.origin.derived_from is None for entry in entries)
        if not number:
            return []
        trainings = "1 training" if number == 1 else f"{number} trainings"
        were = "was" if number == 1 else "were"
        return [f"{trainings} beyond the last look {were} not needed."]

    def progress(self) -> Progress:
        """Return the progress line of all trials, in their present state."""
        progress = Progress(
            self._situation.plan.study.name,
            {task.name: task.config.num_steps for task in self.trials.values()},
        )
        missing = {task.key for task in self.unfinished()}
        for key, task in self.trials.items():
            if key in missing:
                progress.resumed(
                    task.name, max(newest_step(self._situation.ledger.run_dir(key)), 0)
                )
            else:
                progress.ended_before(task.name)
        return progress

    def _replay(self) -> None:
        """Add the trials of the next look, if the present one is complete."""
        num_looks = self._situation.looks().num_done
        if num_looks > self._num_looks:
            self._num_looks, self._next_look = num_looks, None
            self._add_needed()
        elif self.stop is not None:
            # The budget is asked again: less is left to train.
            self._add_needed()

    def _ready(self) -> list[Task]:
        """Return the trials that can start now, of the trainings that were not asked about."""
        groups, self._unasked = self._unasked, {}
        among = [
            task
            for group in groups
            for task in self._groups[group]
            if task.key not in self._given_up
        ]
        ready, _ = self._situation.tasks(among, self._afresh) if among else ([], [])
        new = {task.key: task for task in ready if task.key not in self._open}
        self._open |= new
        return list(new.values())

    def _add_needed(self) -> None:
        """Add the trials of the present look, if it has begun or fits into the budget."""
        tasks = self._situation.trials()
        if self._budget is not None and not tasks.keys() <= self.trials.keys():
            self.stop = self._budget.stop(self._situation, tasks.values())
            if self.stop is not None:
                tasks = self._situation.trials_of_past_looks()
        self._add(tasks.values())

    def _work_ahead(self) -> None:
        """Add one training of the next look, with the trials that may share it.

        The others wait for more free workers: they may not be needed after the present look.
        """
        if self._given_up or self.stop is not None:
            # The next look does not begin in this start.
            return
        if self._next_look is None:
            self._next_look = self._trials_ahead()
        if self._next_look:
            self._add(self._next_look.pop(next(iter(self._next_look))))

    def _trials_ahead(self) -> dict[str, list[Task]]:
        """Return the trials of the next look by training, if it fits into the budget."""
        tasks = self._situation.trials(ahead=True).values()
        if self._budget is not None and self._budget.stop(self._situation, tasks) is not None:
            return {}
        groups: dict[str, list[Task]] = defaultdict(list)
        for task in self._situation.missing(tasks):
            if task.key not in self.trials:
                groups[task.identity.training_key].append(task)
        return groups

    def _add(self, tasks: Iterable[Task]) -> None:
        """Add the trials that are new."""
        for task in tasks:
            key = task.key
            if key not in self.trials:
                self.trials[key] = task
                self._groups[task.identity.training_key].append(task)
                self._unasked[task.identity.training_key] = None

    def _close(self, key: str) -> Task:
        self._unasked[self.trials[key].identity.training_key] = None
        return self._open.pop(key)
