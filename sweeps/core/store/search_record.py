"""A search's folder, written by its driver and read by its report while the search may still run.

::

    search.json          the search
    trials-CODE.jsonl    Optuna's journal; other code, data, weights or versions begin another one
    progress.json        progress of the running trials
    history/             copies of replaced or damaged files
    report.html, search.md, trials.csv
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState
from pydantic import PlainSerializer, PlainValidator

from sweeps.core.design.search_space import Objective, SearchPlan
from sweeps.core.store.folder_record import FolderFile, FolderRecord
from sweeps.core.store.identity import InputDigests
from sweeps.core.store.leases import Leases
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.search_trials import KEY, MESSAGE, RUNGS, read_study

FORMAT_VERSION = 2
FEWEST_FOR_IMPORTANCE = 4
"""Number of complete trials below which the importance of settings is not computed.

With one to three values, every setting explains them about as well as any other. The report calls
the importance a hint up to a larger number, ``FEW``.
"""

State = Literal["finished", "stopped", "diverged", "failed", "running", "unfinished"]
ENDED: tuple[State, ...] = ("finished", "stopped", "diverged")
"""States of trials that do not run again."""


@dataclass(frozen=True, slots=True)
class SearchTrial:
    """One trial of a search.

    Attributes:
        number: Its place in the order of the proposals, from 0.
        key: Its key in the ledger; empty where its driver was lost before the key was known.
        values: The proposed values, by path.
        state: Only ``finished`` trials have results. A trial ``stopped`` at a rung is censored: it
            could have become better. ``diverged`` includes a trial whose result lacks a finite
            value of an objective.
        results: Results by key of the objective; empty unless finished.
        rungs: Metrics at each rung, by step; ``None`` for a metric without a finite value.
        stopped_at: Step of the rung that stopped it; ``None`` where none did.
        message: How it diverged or failed.
        on_front: Whether it is on the Pareto front: no other finished trial is better in one
            objective and nowhere worse.
    """

    number: int
    key: str
    values: Mapping[str, Any]
    state: State
    results: Mapping[str, float]
    rungs: Mapping[int, Mapping[str, float | None]]
    stopped_at: int | None
    message: str | None
    on_front: bool

    @property
    def state_text(self) -> str:
        """State for a table or a log line."""
        return self.state if self.stopped_at is None else f"stopped at rung {self.stopped_at}"


Distribution = Annotated[
    BaseDistribution,
    PlainValidator(
        lambda kind: (
            kind if isinstance(kind, BaseDistribution) else json_to_distribution(json.dumps(kind))
        )
    ),
    PlainSerializer(lambda kind: json.loads(distribution_to_json(kind))),
]
"""Optuna's distribution, stored as Optuna writes it."""


class SearchFile(FolderFile):
    """``search.json``: a search and the digests of what its trials read.

    Attributes:
        start: The recipe's own values of the settings, which the first trial uses; empty where they
            lie outside of the space.
        num_random: Number of trials drawn at random before the sampler proposes from their results.
        num_steps: Steps of a training that no rung stops.
        rungs: Steps at which trials are compared and may be stopped; empty without rungs.
        reduction: One of so many trials continues after a rung; ``None`` without rungs.
        seed: Seed of all trainings and of the proposals.
        journal: Name of the file that holds the trials.
        inputs: Digests of the files that trials read, see ``sweeps.core.store.identity``.
    """

    space: Mapping[str, Distribution]
    start: Mapping[str, Any]
    num_trials: int
    num_random: int
    num_steps: int
    objectives: tuple[Objective, ...]
    rungs: tuple[int, ...]
    reduction: int | None
    seed: int
    journal: str
    inputs: InputDigests


RECORD = FolderRecord("search.json", "search", FORMAT_VERSION, SearchFile)


class SearchRecord(SearchFile):
    """A search in its present state.

    Attributes:
        path: Its folder.
        importance: By key of the objective, each setting's share of the variance that the settings
            explain one by one (fANOVA). The shares of an objective sum to 1. An objective with too
            few trials has no entry.
        importance_n: Number of finished trials from which the importance is computed.
        fault: Description of the journal's damage. Trials after it are missing here.
    """

    path: Path
    trials: tuple[SearchTrial, ...]
    importance: Mapping[str, Mapping[str, float]]
    importance_n: int
    fault: str | None

    @property
    def front(self) -> tuple[SearchTrial, ...]:
        """The trials on the Pareto front, the best of the first objective first."""
        first = self.objectives[0]
        sign = -1 if first.higher_is_better else 1
        return tuple(
            sorted(
                (t for t in self.trials if t.on_front), key=lambda t: sign * t.results[first.key]
            )
        )


def search_file(plan: SearchPlan, journal: str, inputs: InputDigests, start_id: str) -> SearchFile:
    """Return the content of ``search.json`` for a plan.

    Args:
        plan: The search.
        journal: File name of its journal.
        inputs: Digests of the files that its trials read, see ``sweeps.core.store.identity``.
        start_id: See ``FolderFile``.
    """
    study = plan.study
    return SearchFile(
        format_version=RECORD.version,
        start_id=start_id,
        name=study.name,
        title=study.title,
        digest=plan.digest,
        recipe=study.recipe,
        changes=study.changes,
        data=plan.base.data.name,
        space=study.space,
        start=plan.start,
        num_trials=study.num_trials,
        num_random=study.num_random,
        num_steps=plan.base.num_steps,
        objectives=study.objectives,
        rungs=plan.rungs,
        reduction=plan.reduction,
        seed=study.seed,
        journal=journal,
        inputs=inputs,
    )


def read_search_record(path: Path, journal: str | None = None) -> SearchRecord:
    """Read ``search.json``, its journal, and the failures in the ledger of the same storage.

    Args:
        path: The search's folder.
        journal: Name of another journal in the folder, instead of the one in ``search.json``. A
            plan reads the journal that a run with its own code and data would continue.

    Raises:
        ValueError: The folder is no search's folder; or its record is damaged or has another
            version.
    """
    search = RECORD.read(path / RECORD.file)
    return with_trials(
        search if journal is None else search.model_copy(update={"journal": journal}), path
    )


def with_trials(search: SearchFile, path: Path) -> SearchRecord:
    """Add the present state of journal and ledger to a search. Nothing is written.

    Args:
        search: The search.
        path: Its folder, which need not exist.
    """
    study, fault = read_study(path / search.journal)
    proposals = [] if study is None else study.get_trials(deepcopy=False)
    # Without all its values, a trial waits to be asked for, or its driver was lost while it asked.
    # Finished trials have all of them, so ``importance`` uses those that ``importance_n`` counts.
    asked = [trial for trial in proposals if trial.params.keys() == search.space.keys()]
    best = set() if study is None else {trial.number for trial in study.best_trials}
    ledger = Ledger(path.parent)
    return SearchRecord(
        **dict(search),
        path=path,
        trials=tuple(_trial(trial, search.objectives, best, ledger) for trial in asked),
        importance={} if study is None else importance(study, search.objectives),
        importance_n=sum(trial.state is TrialState.COMPLETE for trial in asked),
        fault=fault,
    )


def importance(
    study: optuna.Study, objectives: tuple[Objective, ...]
) -> dict[str, dict[str, float]]:
    """Return each setting's share of what the settings explain one by one, by objective.

    Shares are of the variance (fANOVA) and sum to 1. The evaluator is not Optuna's default:
    PED-ANOVA, the default of Optuna 5, gave no importance to a setting with by far the largest
    effect. An objective is left out where too few trials are complete or
    all have the same value.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    shares = {}
    for index, objective in enumerate(objectives):
        values = [trial.values[index] for trial in complete]
        if len(values) < FEWEST_FOR_IMPORTANCE or min(values) == max(values):
            continue

        def value(trial: FrozenTrial, index: int = index) -> float:
            return float(trial.values[index])

        evaluator = FanovaImportanceEvaluator(seed=0)
        shares[objective.key] = get_param_importances(study, evaluator=evaluator, target=value)
    return shares


def _trial(
    trial: FrozenTrial, objectives: tuple[Objective, ...], best: set[int], ledger: Ledger
) -> SearchTrial:
    key = trial.user_attrs.get(KEY, "")
    rungs = trial.user_attrs.get(RUNGS, {"reached": {}, "stopped_at": None})
    state, message = _state(trial, key, rungs["stopped_at"], ledger)
    # Without a result there are objectives but no values, so ``zip`` below is not strict.
    values = trial.values if state == "finished" else ()
    return SearchTrial(
        number=trial.number,
        key=key,
        values=dict(trial.params),
        state=state,
        results={
            objective.key: value for objective, value in zip(objectives, values, strict=False)
        },
        rungs={int(step): reached for step, reached in rungs["reached"].items()},
        stopped_at=rungs["stopped_at"],
        message=message,
        on_front=trial.number in best,
    )


def _state(
    trial: FrozenTrial, key: str, stopped_at: int | None, ledger: Ledger
) -> tuple[State, str | None]:
    """Return the state of a trial and its message."""
    message = trial.user_attrs.get(MESSAGE)
    if trial.state is TrialState.COMPLETE:
        return "finished", message
    if trial.state is TrialState.PRUNED:
        # Optuna calls every trial without a result pruned. Without a rung it diverged.
        return "diverged" if stopped_at is None else "stopped", message
    # The name is never written: this process takes no lease.
    if key and Leases(ledger.storage, "a reader of the search").holder(key) is not None:
        return "running", message
    failures = ledger.failures(key) if key else []
    return ("failed", failures[-1].reason) if failures else ("unfinished", message)
