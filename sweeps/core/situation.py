"""Where a study stands against the ledger: what is there already, what must be trained, what is only evaluated."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sweeps.core.factors import EVALUATION
from sweeps.core.identity import Identity, identify, why
from sweeps.core.inputs import Inputs, trial_inputs
from sweeps.core.ledger import Ledger
from sweeps.core.runs import Runs, newest_step
from sweeps.core.study import TRAIN, Plan, Study, Trial
from toco.train.fork import prefix_digest, prefix_step


@dataclass(frozen=True, slots=True)
class Task:
    """Something to run for a trial: a training, or with ``source`` (a key) the evaluation of one that is there.

    Attributes:
        prefix_shared: Whether other tasks have the same first steps, so that these need to be done once only.
    """

    trial: Trial
    identity: Identity
    source: str | None = None
    prefix_shared: bool = False

    @property
    def key(self) -> str:
        """Key in the ledger."""
        return self.identity.key

    @property
    def surroundings(self) -> str:
        """Digest (hex, 12 digits) of the code, data and versions, without the config."""
        parts = {name: self.identity.parts[name] for name in ("code", "data", "weights", "versions")}
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

    def tasks(self, without: Iterable[str] = ()) -> tuple[list[Task], list[Task]]:
        """What can be started now, and what waits for a training among them.

        Trials that differ in their evaluation alone share one training: that of the first of them that is there, else
        of the one that changes the evaluation least.
        """
        groups: dict[str, list[tuple[Trial, Identity]]] = defaultdict(list)
        given_up = set(without)
        for trial, identity in self.missing(given_up):
            groups[identity.training_key].append((trial, identity))
        now, later = [], []
        for training_key, members in groups.items():
            there = self.ledger.by_training(training_key)
            if there:
                now += [Task(trial, identity, source=there[0]) for trial, identity in members]
                continue
            first, *others = sorted(members, key=lambda member: self._evaluation_changes(member[0]))
            now.append(Task(*first))
            later += [Task(trial, identity, source=first[1].key) for trial, identity in others]
        return self._with_prefixes(now), later

    def begun(self, tasks: Iterable[Task]) -> dict[str, int]:
        """Steps done by trials that have a checkpoint, by key."""
        steps = {task.key: newest_step(self.ledger.run_dir(task.key)) for task in tasks}
        return {key: step for key, step in steps.items() if step > 0}

    def reasons(self, tasks: Iterable[Task]) -> Counter[str]:
        """Why trials run although their config is in the ledger: what differs, and for how many."""
        reasons: Counter[str] = Counter()
        for task in tasks:
            nearest = self.ledger.nearest(task.identity.parts["config"])
            if nearest:
                reasons.update(why(task.identity.parts, nearest[-1]["identity"]))
        return reasons

    def _evaluation_changes(self, trial: Trial) -> int:
        return sum(path.startswith(EVALUATION) for path in self.plan.cells[trial.cell].changes)

    def _with_prefixes(self, tasks: list[Task]) -> list[Task]:
        if self.plan.study.train != TRAIN:
            return tasks
        digests = {}
        for task in tasks:
            step = prefix_step(task.trial.config)
            if task.source is None and step is not None:
                digests[task.key] = prefix_digest(task.trial.config, step)
        counts = Counter(digests.values())
        return [
            Task(task.trial, task.identity, task.source, prefix_shared=counts[digests.get(task.key, "")] > 1)
            for task in tasks
        ]


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
