"""Decide what a search computes next.

First come the trials that its journal has begun, then Optuna's proposals.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from optuna.trial import FrozenTrial

from sweeps.core.plan.survey import SearchSituation, Task
from sweeps.core.run.progress import Progress
from sweeps.core.run.roles import Proposer
from sweeps.core.store.leases import Leases
from sweeps.core.store.runs import newest_step
from sweeps.core.store.search_trials import SearchTrials
from toco.tracking import read_run_record
from toco.train.records import METRICS, averaged, read_rows
from toco.train.run_folder import RunFolder


class SearchProposer(Proposer):
    """Propose the trials of a search. The journal outlives any driver.

    Args:
        situation: The search, whose record is written.
        leases: They hold the search's lease.

    Attributes:
        trials: The trials proposed or continued in this start, by key. Of trials with equal values,
            the first.
    """

    def __init__(self, situation: SearchSituation, leases: Leases) -> None:
        self._situation = situation
        self._leases = leases
        self._journal = SearchTrials(situation.journal, situation.plan, self._check_lease)
        self.trials: dict[str, Task] = {}
        # Numbers of the proposals that are not complete, by key: equal values are one training.
        self._numbers: dict[str, list[int]] = {}
        self._stopped: dict[str, int] = {}
        self._begun = [self._task(trial) for trial in self._journal.unfinished()]

    def propose(self, *, is_idle: bool) -> Collection[Task]:
        """Return the trials of an earlier driver, then one proposal for each idle worker.

        Raises:
            LostLeaseError: Another driver runs the search now.
            ValueError: The space holds settings that do not go together.
        """
        unfinished, self._begun = self._begun, []
        if unfinished:
            return unfinished
        if not is_idle:
            return ()
        self._check_lease()
        trial = self._journal.ask()
        return () if trial is None else (self._task(trial),)

    @property
    def is_done(self) -> bool:
        """Whether all trials of the search were proposed."""
        return not self._begun and self._journal.is_full

    def may_start(self, task: Task) -> bool:
        """Judge the rungs that a trial has reached already; return whether it continues.

        There are such rungs if its driver was lost there, or if a stopped trial has the same
        values.
        """
        run_dir = self._situation.ledger.run_dir(task.key)
        step = newest_step(run_dir)
        try:
            rows = read_run_record(run_dir).rows if step > 0 else ()
        except ValueError:
            return True
        last = min(step, task.config.num_steps - 1)
        return all(
            self._reached(task.key, row.step, row.values)
            for row in rows
            if row.kind == "val" and row.step <= last
        )

    def goes_on(self, key: str, row: Mapping[str, Any]) -> bool:
        """Return whether a running trial continues after its last report."""
        if row.get("status") != "running" or row.get("step") is None:
            return True
        self._check_lease()
        return self._reached(key, int(row["step"]), row)

    def ended(self, key: str) -> bool:
        """Write to the journal how a trial ended; return whether it was stopped or has a result."""
        if (step := self._stopped.pop(key, None)) is not None:
            for number in self._numbers.pop(key):
                self._journal.stop(number, step)
            self._mark_stopped(key, step)
            return True
        entry = self._situation.ledger.entry(key)
        if entry is None:
            return False
        for number in self._numbers.pop(key):
            self._journal.finish(number, entry)
        return True

    def give_up(self, key: str) -> None:
        """Leave a trial unfinished, for the next start of the search."""
        self._stopped.pop(key, None)
        self._numbers.pop(key)

    def unfinished(self) -> list[Task]:
        """Return the trials that were proposed and are not complete."""
        return [self._task_of(trial) for trial in self._journal.unfinished()]

    def progress(self) -> Progress:
        """Return the progress line of all trials, those not proposed yet included."""
        plan = self._situation.plan
        names = {number: f"trial {number}" for number in self._journal.planned()}
        progress = Progress(plan.study.name, dict.fromkeys(names.values(), plan.base.num_steps))
        for number in self._journal.ended():
            progress.ended_before(names[number])
        for task in self._begun:
            progress.resumed(
                task.name, max(newest_step(self._situation.ledger.run_dir(task.key)), 0)
            )
        return progress

    def _task(self, trial: FrozenTrial) -> Task:
        """Return the task of a proposal, and write its key to the journal."""
        task = self._task_of(trial)
        self._journal.set_key(trial.number, task.key)
        self.trials.setdefault(task.key, task)
        self._numbers.setdefault(task.key, []).append(trial.number)
        return task

    def _task_of(self, trial: FrozenTrial) -> Task:
        return self._situation.task(trial.number, trial.params)

    def _reached(self, key: str, step: int, metrics: Mapping[str, Any]) -> bool:
        # Only the first is compared: two proposals with equal values are one training.
        goes_on = self._journal.reached(self._numbers[key][0], step, metrics)
        if not goes_on:
            self._stopped[key] = step
        return goes_on

    def _mark_stopped(self, key: str, step: int) -> None:
        """Write to a run folder that its training was stopped.

        A study that needs the complete training continues from there.
        """
        folder = RunFolder(self._situation.ledger.run_dir(key))
        if folder.exists() and self._situation.runs.status(key) is None:
            rows = read_rows(folder.path / METRICS).readable
            message = f"Stopped at rung {step} by the search {self._situation.plan.study.name}."
            digest = read_run_record(folder.path).digest
            folder.finish(
                {
                    "status": "stopped",
                    "step": step,
                    "digest": digest,
                    **averaged(rows, 1),
                    "message": message,
                }
            )

    def _check_lease(self) -> None:
        """Check that this driver still runs the search.

        After a long suspension another driver may run it, and only that one may write to the
        journal.
        """
        self._leases.check(self._situation.lease)
