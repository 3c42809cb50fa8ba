"""The trials that a study or a search asks for, and those that the ledger has."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.core.design.study import TRAIN, Plan, Study
from sweeps.core.findings.look_states import Looks
from sweeps.core.findings.replay import Results, replay, replay_each
from sweeps.core.plan.sizes import check_sizes
from sweeps.core.store.forecast_record import Forecast
from sweeps.core.store.identity import (
    Identity,
    InputDigests,
    config_inputs,
    identify,
    same_surroundings,
    trial_inputs,
    why,
)
from sweeps.core.store.leases import Leases
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.ledger_entry import LedgerEntry
from sweeps.core.store.runs import Runs, newest_step
from sweeps.core.store.study_folder import StudyFolder
from toco.train.fork import prefix_digest, prefix_step
from toco.train.reevaluate import Way, way_expected, way_from
from toco.train.run_config import RunConfig

if TYPE_CHECKING:
    # Optuna takes most of a second to import, and a study does not need it.
    from sweeps.core.design.search_space import SearchPlan, SearchStudy
    from sweeps.core.store.search_record import SearchRecord

_KEPT_CHECKPOINTS = 1
"""Number of checkpoints that the run folder of a finished training holds.

A worker reports only the newest, see ``sweeps.core.run.worker``.
"""


@dataclass(frozen=True, slots=True)
class Task:
    """A trial to run: a training, or another evaluation of one.

    Attributes:
        name: Name of the trial in messages.
        cell: Label of its configuration, without the seed.
        config: The ``RunConfig``.
        identity: Everything that its result depends on; it gives the key.
        inputs: Digests of the files that the trial reads, see ``sweeps.core.store.identity``.
        factors: The settings by which it differs from the recipe, by path.
        source: Key of the trial whose training is evaluated again; ``None`` for a training.
        way: How that training is evaluated again.
        prefix_shared: Whether other tasks have the same first steps, so that trainings that start
            after the prefix snapshot is stored begin from it; see :mod:`toco.train.fork`.
    """

    name: str
    cell: str
    config: RunConfig
    identity: Identity
    inputs: InputDigests
    factors: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    way: Way | None = None
    prefix_shared: bool = False

    @property
    def key(self) -> str:
        """Key in the ledger."""
        return self.identity.key


@dataclass(frozen=True, slots=True)
class _Planned:
    """A plan and the place of its results."""

    plan: Plan | SearchPlan
    runs: Runs

    @property
    def ledger(self) -> Ledger:
        """The ledger."""
        return self.runs.ledger

    @property
    def path(self) -> Path:
        """The folder of the study or search."""
        return self.ledger.storage / self.plan.folder_name


@dataclass(frozen=True, slots=True)
class Situation(_Planned):
    """A study, and the part of its results that the ledger has."""

    kind = "study"
    plan: Plan
    inputs: tuple[InputDigests, ...]
    identities: tuple[Identity, ...]
    # Metrics of the trials that have ended, by key. Entries are final, so each is read once.
    _metrics: dict[str, Mapping[str, float | None]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def start_id(self) -> str:
        """Identifies the start of the study: equal after a restart, different in another folder."""
        return StudyFolder(self.path).start_id

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of all trials that the study may need, in their order."""
        return tuple(identity.key for identity in self.identities)

    def looks(self) -> Looks:
        """Replay the looks of the study with the results of the ledger."""
        return replay(self.plan.tests, self._results())

    def past_looks(self) -> tuple[Looks, ...]:
        """Return the state before the first look, and the state after each look that is over."""
        return replay_each(self.plan.tests, self._results())

    def _results(self) -> Results:
        """Return a function that reads the results of the ledger, each once."""
        keys: dict[tuple[int, int], str] = {
            (trial.cell, trial.replicate): identity.key
            for trial, identity in zip(self.plan.trials, self.identities, strict=True)
        }

        def results(cell: int, replicate: int) -> Mapping[str, float | None] | None:
            key = keys[cell, replicate]
            if key not in self._metrics and (entry := self.ledger.entry(key)) is not None:
                self._metrics[key] = entry.metrics if entry.status == "finished" else {}
            return self._metrics.get(key)

        return results

    def trials(self, *, ahead: bool = False) -> dict[str, Task]:
        """Return the trials that the study needs now, by key.

        A sequential study needs the seeds of its present look. The results of the ledger decide.

        Args:
            ahead: Also return those of the next look, as if every open claim stayed open.
        """
        counts = self.plan.tests.num_seeds
        if self.plan.study.sequential is not None:
            looks = self.looks()
            counts = looks.next_seeds if ahead else looks.num_seeds
        return self._first_seeds(counts)

    def trials_of_past_looks(self) -> dict[str, Task]:
        """Return the trials that a sequential study needed for the looks that are over, by key."""
        sequential, looks = self.plan.study.sequential, self.looks()
        if sequential is None or not looks.num_done:
            return {}
        last = sequential.looks[looks.num_done - 1]
        return self._first_seeds([min(number, last) for number in looks.num_seeds])

    def _first_seeds(self, counts: Sequence[int]) -> dict[str, Task]:
        """Return the trials of the first seeds of each configuration, by key."""
        cells = self.plan.cells
        zipped = zip(self.plan.trials, self.identities, self.inputs, strict=True)
        return {
            identity.key: Task(
                trial.name,
                trial.label,
                trial.config,
                identity,
                inputs,
                factors=cells[trial.cell].changes,
            )
            for trial, identity, inputs in zipped
            if trial.replicate < counts[trial.cell]
        }

    def missing(self, among: Iterable[Task] | None = None) -> list[Task]:
        """Return the trials that the ledger does not have, of ``among`` or of all needed now."""
        tasks = self.trials().values() if among is None else list(among)
        finished = self.ledger.finished_keys(task.key for task in tasks)
        return [task for task in tasks if task.key not in finished]

    def tasks(
        self, among: Iterable[Task] | None = None, afresh: Iterable[str] = ()
    ) -> tuple[list[Task], list[Task]]:
        """Return the trials that can start now, and those that wait for a training among these.

        Trials that differ only in their evaluation share one training if it can serve them all.
        That is a stored training, else that of the trial with the newest checkpoint, else that of
        the base, which then has pictures.

        Args:
            among: The trials to look at, or all. Trials that may share a training must come
                together.
            afresh: Keys of trials that are trained even if another training could serve them.
        """
        groups: dict[str, list[Task]] = defaultdict(list)
        for task in self.missing(among):
            groups[task.identity.training_key].append(task)
        afresh = set(afresh)
        ready, waiting = [], []
        for training_key, members in groups.items():
            stored = self.ledger.by_training(training_key)
            trained: list[Task] = []
            for member in sorted(members, key=self._precedence) if len(members) > 1 else members:
                is_served = member.key not in afresh
                if is_served and (evaluation := self._from_stored(member, stored)) is not None:
                    ready.append(evaluation)
                elif is_served and (evaluation := _from_planned(member, trained)) is not None:
                    waiting.append(evaluation)
                else:
                    trained.append(member)
                    ready.append(member)
        return self._with_prefixes(ready), waiting

    def rounds(self) -> list[list[Task]]:
        """Return the missing trials of the present look, and of each look that may follow.

        The looks after the present one are those of a sequential study whose open claims stay open.
        """
        tasks, sequential = self.trials(), self.plan.study.sequential
        rounds = [self.missing(tasks.values())]
        looks = self.looks() if sequential is not None else None
        if sequential is None or looks is None:
            return rounds
        pairs = zip(looks.num_seeds, looks.next_seeds, strict=True)
        is_open = [following > present for present, following in pairs]
        for n in sequential.looks[looks.num_done + 1 :] if any(is_open) else ():
            counts = [
                n if goes_on else present
                for present, goes_on in zip(looks.num_seeds, is_open, strict=True)
            ]
            later = {
                key: task for key, task in self._first_seeds(counts).items() if key not in tasks
            }
            rounds.append(self.missing(later.values()))
            tasks |= later
        return rounds

    def looks_of_trials(self, keys: Iterable[str]) -> list[int]:
        """Count trials by the look of a sequential study that needed them first.

        Args:
            keys: Keys of trials. The last look that is counted has one of them.
        """
        sequential, keys = self.plan.study.sequential, set(keys)
        looks = sequential.looks if sequential is not None else (len(self.plan.study.all_seeds),)
        counts = Counter(
            bisect_right(looks, trial.replicate)
            for trial, identity in zip(self.plan.trials, self.identities, strict=True)
            if identity.key in keys
        )
        return [counts[look] for look in range(max(counts, default=-1) + 1)]

    def served_by(self) -> tuple[int, ...]:
        """Return by configuration the one whose training serves its trials, if nothing is stored.

        That is the configuration itself, or one from which it differs only in the evaluation.
        """
        cells = self.plan.cells
        first = self._first_seeds([1] * len(cells))
        numbers = {task.key: number for number, task in enumerate(first.values())}
        groups: dict[str, list[Task]] = defaultdict(list)
        for task in first.values():
            groups[task.identity.training_key].append(task)
        served = {}
        for members in groups.values():
            trained: list[Task] = []
            for member in sorted(members, key=self._precedence) if len(members) > 1 else members:
                evaluation = _from_planned(member, trained)
                served[member.key] = member.key if evaluation is None else evaluation.source
                trained += [member] if evaluation is None else []
        return tuple(numbers[served[key] or key] for key in first)

    def begun(self, tasks: Iterable[Task]) -> dict[str, int]:
        """Return the steps done by trainings that have a checkpoint, by key."""
        steps = {
            task.key: newest_step(self.ledger.run_dir(task.key))
            for task in tasks
            if task.source is None
        }
        return {key: step for key, step in steps.items() if step > 0}

    def reasons(self, tasks: Iterable[Task]) -> Counter[str]:
        """Count the reasons why trials run although the ledger has their config."""
        tasks = list(tasks)
        damaged = self.ledger.damaged_keys(task.key for task in tasks)
        reasons: Counter[str] = Counter()
        for task in tasks:
            if task.key in damaged:
                reasons[
                    "the entry in the ledger is damaged; it is made again from the run folder, if "
                    "that is undamaged"
                ] += 1
                continue
            nearest = self.ledger.nearest(task.identity.parts["config"])
            if nearest is not None:
                reasons.update(why(task.identity.parts, nearest.identity))
                reasons["version 0.4 entered them, without a digest"] += nearest.without_digest
        return +reasons

    def check(self) -> None:
        """Check that the missing trainings can run. Nothing is written.

        Raises:
            ValueError: One of them cannot.
        """
        study = self.plan.study
        configs = {task.cell: task.config for task in self.missing()}
        check_sizes(configs.values(), study.recipe, study.train)

    def restore_markers(self) -> None:
        """Write again the lost files that lead from a training to its finished trials."""
        finished = self.ledger.finished_keys(self.keys)
        for identity in self.identities:
            if identity.key in finished:
                self.ledger.mark(identity.key, identity.training_key, identity.parts["config"])

    def write(self, forecast: Forecast | None = None) -> None:
        """Write ``study.json``, with the forecast if there is one."""
        StudyFolder(self.path).write_study(self.plan, self.keys, self.inputs, forecast)

    def _from_stored(self, member: Task, stored: Iterable[LedgerEntry]) -> Task | None:
        """Return the evaluation of a stored training, if possible without running the network."""
        parts = member.identity.parts
        evaluated = None
        for entry in stored:
            # A rescored trial has neither counts nor checkpoints, and there may be hundreds of
            # them.
            if entry.is_rescored or entry.identity["data"] != parts["data"]:
                continue
            source = self.ledger.run_dir(entry.key)
            way = way_from(
                source, member.config, same_code=same_surroundings(parts, entry.identity)
            )
            if way == "rescore":
                return replace(member, source=entry.key, way=way)
            if way is not None and evaluated is None:
                evaluated = replace(member, source=entry.key, way=way)
        return evaluated

    def _precedence(self, member: Task) -> tuple[int, int]:
        bases = {self.plan.cells[row.cell].label for row in self.plan.rows if row.role == "base"}
        return -newest_step(self.ledger.run_dir(member.key)), 0 if member.cell in bases else 1

    def _with_prefixes(self, tasks: list[Task]) -> list[Task]:
        # A study's own training function may not know of prefixes.
        if self.plan.study.train != TRAIN:
            return tasks
        digests = {}
        for task in tasks:
            step = prefix_step(task.config)
            if task.source is None and step is not None:
                digests[task.key] = prefix_digest(task.config, step)
        counts = Counter(digests.values())
        return [
            replace(task, prefix_shared=counts[digests.get(task.key, "")] > 1) for task in tasks
        ]


def _from_planned(member: Task, trained: Iterable[Task]) -> Task | None:
    """Return the evaluation of a training that will run."""
    for first in trained:
        if first.identity.parts["data"] == member.identity.parts["data"]:
            way = way_expected(first.config, member.config, _KEPT_CHECKPOINTS)
            if way is not None:
                return replace(member, source=first.key, way=way)
    return None


@dataclass(frozen=True, slots=True)
class SearchSituation(_Planned):
    """A search and the place of its results."""

    kind = "search"
    plan: SearchPlan
    inputs: InputDigests

    @property
    def start_id(self) -> str:
        """Identifies the start of the search: equal after a restart, else different."""
        from sweeps.core.store.search_record import RECORD

        return RECORD.read(self.path / RECORD.file).start_id

    @property
    def lease(self) -> str:
        """Name of the lease of the search's driver.

        Proposals depend on earlier results, so only one driver asks for them.
        """
        return f"search-{self.plan.folder_name}"

    @property
    def journal(self) -> Path:
        """File of the trials with this code, data and versions. Other results would not compare."""
        base = identify(self.plan.base, self.plan.study.train, self.inputs)
        return self.path / f"trials-{base.surroundings}.jsonl"

    def task(self, number: int, values: Mapping[str, Any]) -> Task:
        """Return the training of a proposal.

        Raises:
            ValueError: The values do not go together.
        """
        config, name = self.plan.config(values), f"trial {number}"
        return Task(
            name, name, config, identify(config, self.plan.study.train, self.inputs), self.inputs
        )

    def record(self) -> SearchRecord | None:
        """Read the search; ``None`` where it has not begun with this code and data."""
        from sweeps.core.store.search_record import read_search_record

        return read_search_record(self.path, self.journal.name) if self.journal.is_file() else None

    @property
    def is_complete(self) -> bool:
        """Whether all trials have ended."""
        from sweeps.core.store.search_record import ENDED

        trials = record.trials if (record := self.record()) else ()
        return len(trials) >= self.plan.study.num_trials and all(
            trial.state in ENDED for trial in trials
        )

    def trials(self) -> dict[str, Task]:
        """Return the proposed trials by key; of trials with equal values the first."""
        record = self.record()
        proposed: dict[str, Task] = {}
        for trial in record.trials if record else ():
            task = self.task(trial.number, trial.values)
            proposed.setdefault(task.key, task)
        return proposed

    def check(self) -> None:
        """Check that the trainings at the corners of the space can run. Nothing is written.

        Raises:
            ValueError: One of them cannot.
        """
        study = self.plan.study
        check_sizes(self.plan.corners(), study.recipe, study.train)

    def claim(self, leases: Leases) -> None:
        """Become the one driver of the search, and write its record.

        Raises:
            ValueError: Another driver runs it.
        """
        if not leases.acquire([self.lease]):
            raise ValueError(
                f"{leases.holder(self.lease)} runs this search now. Proposals depend on earlier "
                "results, so only one driver asks for them. Wait for it, or give it more trainings "
                "at once with --concurrent."
            )
        self.write()

    def write(self) -> None:
        """Write ``search.json``."""
        from sweeps.core.store.search_record import RECORD, search_file

        journal = self.journal.name
        RECORD.write(
            self.path, lambda _, start_id: search_file(self.plan, journal, self.inputs, start_id)
        )


def survey(study: Study | SearchStudy, storage: Path) -> Situation | SearchSituation:
    """Resolve ``study`` and look up its results in ``storage``.

    The files that its trials read are digested.

    Raises:
        ValueError: The study, the search or its data is not valid.
        OSError: A file cannot be read.
    """
    runs = Runs(Ledger(storage))
    if not isinstance(study, Study):
        search = study.resolve()
        return SearchSituation(search, runs, config_inputs(search.base))
    plan = study.resolve()
    inputs = trial_inputs(plan.trials)
    identities = tuple(
        identify(trial.config, study.train, read)
        for trial, read in zip(plan.trials, inputs, strict=True)
    )
    return Situation(plan, runs, tuple(inputs), identities)
