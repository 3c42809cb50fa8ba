"""Decide what a study computes next: the trials of its design that the ledger does not have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

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
        ahead: Whether a free worker starts trials of the next look of a sequential study before the
            present look is complete. They are wasted where a claim is decided at the present look.
        budget: Decides whether a further look may start; ``None`` for no limit.

    Attributes:
        trials: The trials of the study so far, by key.
        stop: Why the study asks for no further look; ``None`` as long as it does.
    """

    def __init__(
        self, situation: Situation, *, ahead: bool = False, budget: Budget | None = None
    ) -> None:
        self._situation = situation
        self._ahead = ahead
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
        self._add_needed()

    def propose(self, *, is_idle: bool) -> Collection[Task]:
        """Return the trials that can start now, of trainings where a trial has ended since.

        Args:
            is_idle: Whether a worker is free, for a study that works ahead.
        """
        is_sequential = self._situation.plan.study.sequential is not None
        if is_sequential and self._unasked:
            self._add_needed()
        if is_sequential and self._ahead and is_idle and not self._unasked:
            self._add_ahead()
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

    @property
    def is_done(self) -> bool:
        """Whether no trial has ended since the last proposal."""
        return not self._unasked

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

    def unfinished(self) -> list[Task]:
        """Return the trials that the study needs and the ledger does not have."""
        missing = self._situation.missing()
        if self.stop is None:
            return missing
        # Those of the look that does not start are not needed.
        return [task for task in missing if task.key in self.trials]

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

    def _add_needed(self) -> None:
        """Add the trials of the present look, if it has begun or fits into the budget."""
        tasks = self._situation.trials()
        if self._budget is not None and not tasks.keys() <= self.trials.keys():
            self.stop = self._budget.stop(self._situation, tasks.values())
            if self.stop is not None:
                tasks = self._situation.trials_of_past_looks()
        self._add(tasks)

    def _add_ahead(self) -> None:
        """Add the trials of the next look, if it fits into the budget as far as it is known."""
        tasks = self._situation.trials(ahead=True)
        if self._budget is None or self._budget.stop(self._situation, tasks.values()) is None:
            self._add(tasks)

    def _add(self, tasks: Mapping[str, Task]) -> None:
        """Add the trials that are new."""
        for key, task in tasks.items():
            if key not in self.trials:
                self.trials[key] = task
                self._groups[task.identity.training_key].append(task)
                self._unasked[task.identity.training_key] = None

    def _close(self, key: str) -> Task:
        self._unasked[self.trials[key].identity.training_key] = None
        return self._open.pop(key)
