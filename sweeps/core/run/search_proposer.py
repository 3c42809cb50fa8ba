"""Decides what a search computes next: what its journal has begun, then what Optuna proposes."""

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
    """Proposes the trials of a search. The journal outlives any driver.

    Args:
        situation: The search, whose record is written.
        leases: They hold the search's lease.

    Attributes:
        trials: What was proposed or goes on in this start, by key; the first of those with equal
            values.
    """

    def __init__(self, situation: SearchSituation, leases: Leases) -> None:
        self._situation = situation
        self._leases = leases
        self._journal = SearchTrials(situation.journal, situation.plan, self._check_lease)
        self.trials: dict[str, Task] = {}
        # Numbers of the proposals that have no end yet, by key: equal values are one training.
        self._numbers: dict[str, list[int]] = {}
        self._stopped: dict[str, int] = {}
        self._begun = [self._task(trial) for trial in self._journal.unfinished()]

    def propose(self, *, is_idle: bool) -> Collection[Task]:
        """What an earlier driver has begun, then one proposal whenever a worker waits for a trial.

        Raises:
            LostLeaseError: Another driver runs the search now.
            ValueError: The space holds settings that do not go together.
        """
        begun, self._begun = self._begun, []
        if begun:
            return begun
        if not is_idle:
            return ()
        self._check_lease()
        trial = self._journal.ask()
        return () if trial is None else (self._task(trial),)

    @property
    def is_done(self) -> bool:
        """Whether as many trials were proposed as the search is to have."""
        return not self._begun and self._journal.is_full

    def may_start(self, task: Task) -> bool:
        """Judge the rungs that a trial is at already; says whether it goes on.

        Its driver was lost there, or it has the values of a trial that was stopped.
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
        """Whether a running trial goes on after what it has reported."""
        if row.get("status") != "running" or row.get("step") is None:
            return True
        self._check_lease()
        return self._reached(key, int(row["step"]), row)

    def ended(self, key: str) -> bool:
        """Tell the journal how a trial ended; says whether it was stopped at a rung or the ledger has it."""
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
        """A trial stays unfinished, for the next start of the search."""
        self._stopped.pop(key, None)
        self._numbers.pop(key)

    def unfinished(self) -> list[Task]:
        """Trials that were proposed and did not end."""
        return [self._task_of(trial) for trial in self._journal.unfinished()]

    def progress(self) -> Progress:
        """The progress line of all trials, those included that are still to be proposed."""
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
        """What a proposal stands for; the journal has its key from now on."""
        task = self._task_of(trial)
        self._journal.set_key(trial.number, task.key)
        self.trials.setdefault(task.key, task)
        self._numbers.setdefault(task.key, []).append(trial.number)
        return task

    def _task_of(self, trial: FrozenTrial) -> Task:
        return self._situation.task(trial.number, trial.params)

    def _reached(self, key: str, step: int, metrics: Mapping[str, Any]) -> bool:
        # The first alone is compared: equal values that were proposed twice are one training.
        goes_on = self._journal.reached(self._numbers[key][0], step, metrics)
        if not goes_on:
            self._stopped[key] = step
        return goes_on

    def _mark_stopped(self, key: str, step: int) -> None:
        """Say in a run folder that its training was stopped; whoever needs the whole one goes on from there."""
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
        """A driver that was suspended for long may not be the search's any more; it must not write to the journal."""
        self._leases.check(self._situation.lease)
