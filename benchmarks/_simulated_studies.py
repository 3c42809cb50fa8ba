"""Studies of invented trainings whose truth is known, through the code that runs real ones.

Each study goes through the proposer, the situation, the analysis and the verdict. Only the
trainings and the disk are missing: values are drawn, and the ledger is in memory.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeps import components, table5
from sweeps.core.design.claims import TestedClaim
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.paper import CAM_MIOU
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, PlannedRow, Study, Trial
from sweeps.core.findings.analysis import analyse
from sweeps.core.findings.look_states import ClaimState, Looks
from sweeps.core.findings.looks import looks_of
from sweeps.core.findings.verdict import judge
from sweeps.core.plan.survey import Situation, survey
from sweeps.core.run.study_proposer import StudyProposer
from sweeps.core.store.identity import Identity
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.ledger_entry import LedgerEntry, Origin, Resources
from sweeps.core.store.runs import Runs
from sweeps.core.store.study_folder import study_file
from sweeps.core.store.study_record import StudyFile, StudyRecord, TrialRecord

SD, MEAN = 0.01, 0.5
"""Standard deviation of a paired difference, and mean of the base, as fractions."""
TRAIN = f"{__name__}:trains_nothing"
_STORAGE = Path("simulated")

Floats = NDArray[np.float64]
Noise = Callable[[np.random.Generator, tuple[int, int, int]], Floats]
"""Noise of trainings ``[configurations, seeds, metrics]``, in standard deviations of a difference.

NaN stands for a training that diverged.
"""


def normal(generator: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """Normal noise. The difference of two trainings has the standard deviation 1."""
    return generator.normal(0.0, math.sqrt(0.5), shape)


def heavy_tails(generator: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """Noise with the t distribution of three degrees of freedom."""
    return generator.standard_t(3, shape) / math.sqrt(6)


def unequal_spreads(generator: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """Normal noise whose standard deviation grows from configuration to configuration, 1 to 5."""
    return normal(generator, shape) * np.linspace(1, 5, shape[0])[:, None, None]


def collapsed(generator: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """Normal noise; every tenth training collapses to a bad value."""
    return np.where(generator.random((*shape[:2], 1)) < 0.1, -40.0, normal(generator, shape))


def diverged(generator: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """Normal noise; every tenth training diverges."""
    return np.where(generator.random((*shape[:2], 1)) < 0.1, np.nan, normal(generator, shape))


@dataclass(frozen=True)
class Case:
    """Studies with one truth.

    Attributes:
        study: The study.
        effects: True values of rows above that of the first row, by label, in standard deviations
            of a paired difference; 0 for other rows.
        noise: Noise of the trainings.
    """

    study: Study
    effects: Mapping[str, float] = field(default_factory=dict)
    noise: Noise = normal


def study_of(rows: int, seeds: tuple[int, ...] | Sequential, margin: float | None = None) -> Study:
    """Return a study of ``rows`` rows and their base, without a paper.

    Args:
        rows: Number of rows. Each is a claim: that it differs from the base.
        seeds: Seeds of the study.
        margin: Margin of "no difference", in standard deviations of a paired difference.
    """
    labels = ("base", *(f"row {number}" for number in range(1, rows + 1)))
    values = tuple(0.1 + number / 100 for number in range(rows + 1))
    return Study(
        name="simulated",
        title="Simulated trainings",
        recipe="shapes_nano",
        design=OneFactor((Factor("method.temperature", values, labels=labels),)),
        seeds=seeds,
        metrics=(Metric(CAM_MIOU, "M"),),
        purpose="direction",
        repeat_base=False,
        margin=None if margin is None else margin * SD,
        train=TRAIN,
    )


def trains_nothing() -> None:
    """Stand in for the training of a simulated study, which no one calls."""


def _of_paper(study: Study, margin: float | None = None) -> Study:
    return replace(study, seeds=Sequential(), margin=margin, train=TRAIN)


def _rows(*effects: float) -> dict[str, float]:
    return {f"row {number}": effect for number, effect in enumerate(effects, 1)}


MIXED = _rows(0, 0, 0, 1, 1, 1, 2, 3, 3)
# Of each claim of several comparisons, all but the last are far from zero.
_ALL_BUT_ONE = dict.fromkeys(("#8", "#9", "16 px", "24 px", "0", "0.1"), -5.0)
CASES = {
    "null": Case(study_of(9, Sequential())),
    "null, no futility": Case(study_of(9, Sequential(futility=None))),
    "null, margin of 1.5 sd": Case(study_of(9, Sequential(), margin=1.5)),
    "null, 5 claims": Case(study_of(5, Sequential())),
    "null, cap 20": Case(study_of(9, Sequential(looks=(3, 5, 7, 10, 14, 20)))),
    "null, look at every seed": Case(study_of(9, Sequential(looks=tuple(range(2, 11))))),
    "heavy tails": Case(study_of(9, Sequential()), noise=heavy_tails),
    "collapsed seeds": Case(study_of(9, Sequential()), noise=collapsed),
    "diverged seeds, as a value": Case(study_of(9, Sequential(diverged_value=0.1)), noise=diverged),
    "diverged seeds, not tested": Case(study_of(9, Sequential()), noise=diverged),
    "unequal spreads": Case(study_of(9, Sequential()), noise=unequal_spreads),
    "some strong": Case(study_of(9, Sequential()), _rows(0, 0, 0, 0, 0, 5, 5, 5, 5)),
    "at the margin": Case(study_of(9, Sequential(), margin=1.0), _rows(*[1.0, -1.0] * 4, 1.0)),
    "ladder": Case(_of_paper(components.STUDY)),
    "table 5": Case(_of_paper(table5.STUDY)),
    "table 5, margin of 1.5 sd": Case(_of_paper(table5.STUDY, margin=1.5 * SD)),
    "table 5, one comparison of each claim false": Case(_of_paper(table5.STUDY), _ALL_BUT_ONE),
    "mixed": Case(study_of(9, Sequential()), MIXED),
    "mixed, no futility": Case(study_of(9, Sequential(futility=None)), MIXED),
    "mixed, fixed 10": Case(study_of(9, tuple(range(10))), MIXED),
    "mixed, cap 20": Case(study_of(9, Sequential(looks=(3, 5, 7, 10, 14, 20))), MIXED),
    "5 claims, mixed": Case(study_of(5, Sequential()), _rows(0, 0, 1, 2, 3)),
}
"""The simulated cases by name."""


class MemoryLedger(Ledger):
    """A ledger in memory. Only what a study's driver asks for is there."""

    def __init__(self, entries: Mapping[str, LedgerEntry] | None = None) -> None:
        super().__init__(_STORAGE)
        self.entries = dict(entries or {})

    def entry(self, key: str) -> LedgerEntry | None:
        return self.entries.get(key)

    def finished_keys(self, keys: Any) -> set[str]:  # noqa: ANN401 - as the ledger on disk
        return {key for key in keys if key in self.entries}

    def by_training(self, training_key: str) -> list[LedgerEntry]:
        # Every trial is a training of its own.
        return []


@dataclass(frozen=True, slots=True)
class _Watched(Situation):
    """A situation that keeps the states of its looks."""

    seen: list[Looks] = field(default_factory=list)

    def looks(self) -> Looks:
        looks = Situation.looks(self)
        self.seen.append(looks)
        return looks


@dataclass(frozen=True)
class Ended:
    """A simulated study at its end.

    Attributes:
        num_trainings: Number of trainings, without those of the A/A row.
        seen: States of the looks while it ran.
        record: The study as it is read from disk.
    """

    num_trainings: int
    seen: tuple[Looks, ...]
    record: StudyRecord

    @property
    def looks(self) -> Looks:
        """State of the looks, from the record."""
        return looks_of(self.record)


class Simulation:
    """Run studies of one case.

    Everything that does not depend on values is computed once.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        situation = survey(case.study, _STORAGE)
        assert isinstance(situation, Situation)  # noqa: S101 - of a study
        self._situation, self.plan = situation, situation.plan
        self._file: StudyFile = study_file(
            self.plan, situation.keys, situation.inputs, start_id="0" * 32
        )
        self._places = {
            identity.key: (trial.cell, trial.replicate)
            for trial, identity in zip(self.plan.trials, situation.identities, strict=True)
        }
        self._entries = {
            identity.key: _entry(identity, trial, self.plan.cells[trial.cell].changes)
            for identity, trial in zip(situation.identities, self.plan.trials, strict=True)
        }
        self._again = {row.cell for row in self.plan.rows if row.role == "a/a"}
        self._metrics = [metric.key for metric in case.study.metrics]
        # True values by configuration.
        self.truth = np.zeros(len(self.plan.cells))
        for row in self.plan.rows:
            self.truth[row.cell] += case.effects.get(row.label, 0.0)

    def draw(self, seed: Sequence[int]) -> dict[str, LedgerEntry]:
        """Draw the results of all trials up to the cap, by key."""
        shape = (len(self.plan.cells), max(self.plan.tests.num_seeds), len(self._metrics))
        noise = self.case.noise(np.random.default_rng(seed), shape)
        values = MEAN + SD * (self.truth[:, None, None] + noise)
        entries = {}
        for key, place in self._places.items():
            numbers = values[place].tolist()
            update = (
                {"status": "diverged"}
                if math.isnan(numbers[0])
                else {"metrics": dict(zip(self._metrics, numbers, strict=True))}
            )
            entries[key] = self._entries[key].model_copy(update=update)
        return entries

    def run(
        self,
        results: Mapping[str, LedgerEntry],
        *,
        present: Mapping[str, LedgerEntry] | None = None,
        kills: np.random.Generator | None = None,
        ahead: bool = False,
    ) -> Ended:
        """Run a study to its end.

        Args:
            results: The result that each trial will have.
            present: Results that the ledger has before the study begins.
            kills: Kills the driver after every tenth trial on average, and starts it again. Trials
                then end in any order.
            ahead: Whether the driver works ahead.
        """
        ledger, seen = MemoryLedger(present), list[Looks]()

        def start() -> StudyProposer:
            situation = _Watched(
                self.plan,
                Runs(ledger),
                self._situation.inputs,
                self._situation.identities,
                seen=seen,
            )
            return StudyProposer(situation, ahead=ahead)

        proposer = start()
        running: list[str] = []
        while tasks := [*running, *(task.key for task in proposer.propose(is_idle=ahead))]:
            if kills is not None:
                kills.shuffle(tasks)
            # All run at once; without kills, all end before the next proposal.
            num_ending = len(tasks) if kills is None else 1
            for key in tasks[:num_ending]:
                ledger.entries[key] = results[key]
                proposer.ended(key)
            running = tasks[num_ending:]
            if kills is not None and kills.random() < 0.1:
                proposer, running = start(), []
        num = sum(self._places[key][0] not in self._again for key in ledger.entries)
        return Ended(num, tuple(seen), self._record(ledger))

    def _record(self, ledger: Ledger) -> StudyRecord:
        trials = tuple(
            tuple(
                _trial(key, seed, replicate, ledger.entry(key))
                for replicate, (seed, key) in enumerate(zip(cell.seeds, cell.keys, strict=True))
            )
            for cell in self._file.cells
        )
        return StudyRecord(**dict(self._file), path=_STORAGE, trials_by_cell=trials)

    def true_difference(self, row: int) -> float:
        """Return the true difference of a row from its base, in standard deviations."""
        planned: PlannedRow = self.plan.rows[row]
        assert planned.versus is not None  # noqa: S101 - a comparison has a base
        return float(self.truth[planned.cell] - self.truth[self.plan.rows[planned.versus].cell])

    def is_false(self, state: ClaimState) -> bool:
        """Whether a claim ended with a statement that is not true."""
        truths = [self.true_difference(item.row) for item in state.claim.comparisons]
        signed = [
            item.direction * truth
            for item, truth in zip(state.claim.comparisons, truths, strict=True)
        ]
        match state.outcome:
            case "shown" if signed_of(state.claim):
                return min(signed) <= 0
            case "shown":
                test = state.comparisons[0].test
                return test is None or truths[0] * test.difference <= 0
            case "opposite":
                return min(signed) >= 0
            case "no difference":
                margin = (self.case.study.margin or 0.0) / SD
                return max(map(abs, truths)) >= margin * (1 - 1e-9)
        return False


def signed_of(claim: TestedClaim) -> bool:
    """Whether a claim names the sign of its differences."""
    return all(item.direction for item in claim.comparisons)


def outcome_of(simulation: Simulation, ended: Ended) -> dict[str, float]:
    """Analyse and judge a study, and return its figures: means over its claims or comparisons.

    ``false``: whether it makes a false statement about a claim. ``marked``: whether its table marks
    a difference as significant that is none. ``trainings``: number of trainings. ``no_difference``:
    claims that ended so. ``covers_at_stop``, ``covers_at_all_looks``: comparisons whose last
    interval, or whose every interval, covers the true difference. ``shown_at_EFFECT_sd``: claims
    with this effect that were shown.
    """
    analysis = analyse(ended.record)
    verdict = judge(ended.record, analysis)
    claims = analysis.looks.claims
    told = {item.name: item.outcome for item in verdict.claims}
    for state in claims if verdict.claims else ():
        # What a reader is told is what the looks decided. No study here has the paper's setting.
        for outcome, words in (("shown", "direction confirmed"), ("opposite", "contradicted")):
            if (state.outcome == outcome) != (told[state.claim.name] == words):
                raise AssertionError(
                    f"{state.claim.name} is {told[state.claim.name]!r}, but {state.outcome!r}."
                )
    figures = {
        "false": float(any(simulation.is_false(state) for state in claims)),
        "marked": float(
            any(
                of_metric.significant
                and simulation.true_difference(number) * of_metric.paired.difference <= 0
                for number, row in enumerate(analysis.rows)
                for of_metric in row.figures.values()
                if of_metric.paired is not None
            )
        ),
        "trainings": float(ended.num_trainings),
        "no_difference": _mean(state.outcome == "no difference" for state in claims),
    }
    covers = _covers(simulation, [*ended.seen, analysis.looks])
    figures["covers_at_stop"] = _mean(of_look[max(of_look)] for of_look in covers)
    figures["covers_at_all_looks"] = _mean(all(of_look.values()) for of_look in covers)
    shown: dict[float, list[bool]] = {}
    for state in claims:
        effect = min(abs(simulation.true_difference(item.row)) for item in state.claim.comparisons)
        shown.setdefault(effect, []).append(state.outcome == "shown")
    return figures | {
        f"shown_at_{effect:g}_sd": _mean(of_effect) for effect, of_effect in sorted(shown.items())
    }


def _covers(simulation: Simulation, seen: Sequence[Looks]) -> list[dict[int, bool]]:
    """Return whether the intervals of each comparison cover, by number of seeds at the look."""
    covers: dict[tuple[int, str], dict[int, bool]] = {}
    for looks in seen:
        for state in (state for claim in looks.claims for state in claim.comparisons):
            test = state.test
            if test is not None and test.low is not None and test.high is not None:
                truth = SD * simulation.true_difference(state.comparison.row)
                place = state.comparison.row, state.comparison.metric
                covers.setdefault(place, {})[test.n] = test.low <= truth <= test.high
    return list(covers.values())


def _mean(values: Iterable[bool]) -> float:
    """Mean; NaN without values."""
    array = np.array(list(values), float)
    return float(array.mean()) if len(array) else math.nan


@lru_cache(maxsize=1)
def simulation_of(name: str) -> Simulation:
    """Return the simulation of a case."""
    return Simulation(CASES[name])


def simulate(name: str, seeds: range) -> dict[str, tuple[float, float]]:
    """Run a study of a case for each seed; return mean and standard error of each figure."""
    simulation = simulation_of(name)
    studies = [
        outcome_of(simulation, simulation.run(simulation.draw((seed, zlib.crc32(name.encode())))))
        for seed in seeds
    ]
    result = {}
    for figure in studies[0]:
        values = np.array([study[figure] for study in studies])
        values = values[np.isfinite(values)]
        result[figure] = float(values.mean()), float(values.std() / math.sqrt(len(values)))
    return result


def _entry(identity: Identity, trial: Trial, changes: Mapping[str, Any]) -> LedgerEntry:
    """Return the entry of a trial, without its metrics. Its config is short."""
    config: dict[str, Any] = {"num_steps": 1, "evaluate_every": 1, "evaluate": {}}
    config["seed"] = trial.seed
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        node = config
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    return LedgerEntry(
        key=identity.key,
        training_key=identity.training_key,
        status="finished",
        step=1,
        attempts=0,
        message=None,
        identity=identity.parts,
        config=config,
        metrics={},
        wall_time_s=60.0,
        step_time_s=None,
        peak_memory_bytes=None,
        provenance={},
        resources=Resources(1.0, 0.0),
        origin=Origin("simulated", "shapes_nano"),
        run=f"runs/{identity.key}",
    )


def _trial(key: str, seed: int, replicate: int, entry: LedgerEntry | None) -> TrialRecord:
    run_dir = _STORAGE / "runs" / key
    if entry is None:
        return TrialRecord(key, seed, replicate, "waiting", None, 0, 0, None, run_dir)
    return TrialRecord(key, seed, replicate, entry.status, None, 0, entry.step, entry, run_dir)
