"""Where a study stands against the ledger: what is there already, what must be trained, what is only evaluated."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from sweeps.core.design.study import TRAIN, Plan, Study, Trial
from sweeps.core.store.identity import SURROUNDINGS, Identity, identify, same_surroundings, why
from sweeps.core.store.inputs import Inputs, trial_inputs
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.ledger_entry import LedgerEntry
from sweeps.core.store.runs import Runs, newest_step
from toco.train.fork import prefix_digest, prefix_step
from toco.train.reevaluate import Way, way_expected, way_from

_KEPT_CHECKPOINTS = 1
"""Of a training, in its run folder: a snapshot has the newest alone, see ``sweeps.core.run.worker``."""


@dataclass(frozen=True, slots=True)
class Task:
    """Something to run for a trial: a training, or another evaluation of one.

    Attributes:
        source: Key of the trial whose training is evaluated again.
        way: How it is.
        prefix_shared: Whether other tasks have the same first steps, so that these need to be done once only.
    """

    trial: Trial
    identity: Identity
    source: str | None = None
    way: Way | None = None
    prefix_shared: bool = False

    @property
    def key(self) -> str:
        """Key in the ledger."""
        return self.identity.key

    @property
    def surroundings(self) -> str:
        """Digest (hex, 12 digits) of the code, data and versions, without the config."""
        parts = {name: self.identity.parts[name] for name in SURROUNDINGS}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Situation:
    """A plan and what the ledger has of it."""

    plan: Plan
    runs: Runs
    inputs: tuple[Inputs, ...]
    identities: tuple[Identity, ...]

    @property
    def ledger(self) -> Ledger:
        """The ledger."""
        return self.runs.ledger

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the trials in the ledger."""
        return tuple(identity.key for identity in self.identities)

    def missing(self, without: Iterable[str] = ()) -> list[tuple[Trial, Identity]]:
        """Trials that the ledger does not have; ``without`` these keys."""
        there = self.ledger.finished_keys(self.keys) | set(without)
        return [
            (trial, identity)
            for trial, identity in zip(self.plan.trials, self.identities, strict=True)
            if identity.key not in there
        ]

    def tasks(self, without: Iterable[str] = (), afresh: Iterable[str] = ()) -> tuple[list[Task], list[Task]]:
        """What can be started now, and what waits for a training among them.

        Trials that differ in their evaluation alone share one training where that can serve them: one that is there,
        else that of the trial among them which has come furthest, else that of the base, which then has pictures.

        Args:
            without: Keys that are left out.
            afresh: Keys that are trained, although there is a training that seems to serve.
        """
        groups: dict[str, list[tuple[Trial, Identity]]] = defaultdict(list)
        for trial, identity in self.missing(without):
            groups[identity.training_key].append((trial, identity))
        afresh = set(afresh)
        now, later = [], []
        for training_key, members in groups.items():
            there = self.ledger.by_training(training_key)
            trained: list[tuple[Trial, Identity]] = []
            for trial, identity in sorted(members, key=self._precedence) if len(members) > 1 else members:
                served = identity.key not in afresh
                if served and (task := self._from_stored(trial, identity, there)) is not None:
                    now.append(task)
                elif served and (task := _from_planned(trial, identity, trained)) is not None:
                    later.append(task)
                else:
                    trained.append((trial, identity))
                    now.append(Task(trial, identity))
        return self._with_prefixes(now), later

    def begun(self, tasks: Iterable[Task]) -> dict[str, int]:
        """Steps done by trainings that have a checkpoint, by key."""
        steps = {task.key: newest_step(self.ledger.run_dir(task.key)) for task in tasks if task.source is None}
        return {key: step for key, step in steps.items() if step > 0}

    def reasons(self, tasks: Iterable[Task]) -> Counter[str]:
        """Why trials run although their config is in the ledger: what differs, and for how many."""
        tasks = list(tasks)
        damaged = self.ledger.damaged_keys(task.key for task in tasks)
        reasons: Counter[str] = Counter()
        for task in tasks:
            if task.key in damaged:
                reasons["the entry in the ledger is damaged; a whole run folder makes it again without training"] += 1
                continue
            nearest = self.ledger.nearest(task.identity.parts["config"])
            if nearest is not None:
                reasons.update(why(task.identity.parts, nearest.identity))
                reasons["version 0.4 entered it, without a digest"] += nearest.without_digest
        return +reasons

    def mark(self) -> None:
        """Make the files by which the finished trials are found from their training, where these were lost."""
        there = self.ledger.finished_keys(self.keys)
        for identity in self.identities:
            if identity.key in there:
                self.ledger.mark(identity.key, identity.training_key, identity.parts["config"])

    def _from_stored(self, trial: Trial, identity: Identity, there: Iterable[LedgerEntry]) -> Task | None:
        """The evaluation of one of the trainings that are there; without the network rather than with it."""
        evaluated = None
        for entry in there:
            known = entry.identity
            # One that was rescored itself has neither counts nor checkpoints, and there may be hundreds of them.
            if entry.is_rescored or known["data"] != identity.parts["data"]:
                continue
            source = self.ledger.run_dir(entry.key)
            way = way_from(source, trial.config, same_code=same_surroundings(identity.parts, known))
            if way == "rescore":
                return Task(trial, identity, entry.key, way)
            if way is not None and evaluated is None:
                evaluated = Task(trial, identity, entry.key, way)
        return evaluated

    def _precedence(self, member: tuple[Trial, Identity]) -> tuple[int, int]:
        trial, identity = member
        is_base = any(row.cell == trial.cell for row in self.plan.rows if row.role == "base")
        return -newest_step(self.ledger.run_dir(identity.key)), 0 if is_base else 1

    def _with_prefixes(self, tasks: list[Task]) -> list[Task]:
        if self.plan.study.train != TRAIN:
            return tasks
        digests = {}
        for task in tasks:
            step = prefix_step(task.trial.config)
            if task.source is None and step is not None:
                digests[task.key] = prefix_digest(task.trial.config, step)
        counts = Counter(digests.values())
        return [replace(task, prefix_shared=counts[digests.get(task.key, "")] > 1) for task in tasks]


def _from_planned(trial: Trial, identity: Identity, trained: Iterable[tuple[Trial, Identity]]) -> Task | None:
    """The evaluation of a training that will be there."""
    for first, known in trained:
        if known.parts["data"] == identity.parts["data"]:
            way = way_expected(first.config, trial.config, _KEPT_CHECKPOINTS)
            if way is not None:
                return Task(trial, identity, known.key, way)
    return None


def survey(study: Study, storage: Path) -> Situation:
    """Resolve ``study`` and look at what ``storage`` has of it.

    Raises:
        ValueError: The study or its data is not valid.
        OSError: A file cannot be read.
    """
    plan = study.resolve()
    inputs = trial_inputs(plan.trials)
    identities = tuple(
        identify(trial.config, study.train, read) for trial, read in zip(plan.trials, inputs, strict=True)
    )
    return Situation(plan, Runs(Ledger(storage)), tuple(inputs), identities)
