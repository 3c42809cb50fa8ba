"""The plan of a study or a search: trials, cost and power, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import click

from sweeps.core.design.search_space import SearchPlan, SearchStudy
from sweeps.core.design.study import TRAIN, Study
from sweeps.core.plan import admission
from sweeps.core.plan.budget import Budget
from sweeps.core.plan.estimates import Work
from sweeps.core.plan.expected_text import expected_lines
from sweeps.core.plan.forecast import describe, forecast, training_seconds, with_looks
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.power import PowerCheck, SeedNoise, power_check, seed_noise
from sweeps.core.plan.probe import Cost, ProbeError, probe
from sweeps.core.plan.ray_environment import resolve_address
from sweeps.core.plan.survey import SearchSituation, Situation, Task, survey
from sweeps.core.store.forecast_record import Forecast
from sweeps.core.store.ledger_entry import LedgerEntry
from sweeps.core.store.runs import newest_step
from sweeps.core.store.search_record import ENDED
from toco.train.distributed import check_shares
from toco.train.run_config import RunConfig

PROBED = 3
"""Number of different trainings that are probed, where the ledger has no history.

Each probe takes seconds to minutes, for which the user waits.
"""


@dataclass(frozen=True, slots=True)
class Outlook:
    """The remaining work of a study or a search.

    Attributes:
        num_trials: All trials, as far as they are known.
        num_left: Trials without a result.
        forecast: The predicted cost of these.
        text: The plan as text.
        refusals: Reasons why it must not run as it is, in sentences.
    """

    num_trials: int
    num_left: int
    forecast: Forecast
    text: str
    refusals: tuple[str, ...]


def print_plan(study: Study | SearchStudy, launch: Launch) -> int:
    """Print the plan of ``study``; return 0, or 1 where it would be refused."""
    situation = survey(study, launch.storage)
    situation.check()
    outlook = look_ahead(situation, launch, simulate=True)
    click.echo(outlook.text)
    for reason in outlook.refusals:
        click.echo(f"It would be refused. {reason}")
    return 1 if outlook.refusals else 0


def look_ahead(
    situation: Situation | SearchSituation,
    launch: Launch,
    *,
    refuse: bool = False,
    simulate: bool = False,
) -> Outlook:
    """Plan the remaining trials and predict their cost.

    Args:
        situation: The study or search.
        launch: The resources.
        refuse: Raise the first refusal, before anything is timed for the forecast.
        simulate: Also say what a sequential study is expected to take, which needs a few seconds.

    Raises:
        ValueError: A training cannot be divided among the GPUs of a trial; or a refusal.
    """
    if isinstance(situation, Situation):
        return _look_ahead_study(situation, launch, refuse=refuse, simulate=simulate)
    return _look_ahead_search(situation, launch, refuse)


def power_of(situation: Situation, launch: Launch, noise: Mapping[str, SeedNoise]) -> PowerCheck:
    """Compute the power of the study's seeds.

    Args:
        situation: The study.
        launch: Says whether it may be underpowered.
        noise: Seed noise by metric, see :func:`ledger_noise`.
    """
    return power_check(
        situation.plan,
        noise,
        accept_underpowered=launch.accept_underpowered,
        served_by=situation.served_by(),
    )


def ledger_noise(situation: Situation) -> dict[str, SeedNoise]:
    """Estimate the seed noise of the compared metrics, by key, where the ledger knows it."""
    plan = situation.plan
    history, base = tuple(situation.ledger.history(plan.study.recipe)), plan.study.base()
    measured = {
        key: seed_noise(history, base, key) for key in {key for _, key in plan.tests.places}
    }
    return {key: estimate for key, estimate in measured.items() if estimate is not None}


def rungs_text(plan: SearchPlan) -> str:
    """Say in a sentence when trials are stopped early."""
    if not plan.rungs or plan.study.rungs is None:
        return (
            "No trial is stopped early: no rung lies between the start of the last loss term and "
            "the end."
        )
    steps = ", ".join(map(str, plan.rungs))
    return (
        f"At the rungs (step {steps} of {plan.base.num_steps}) a trial goes on if it is among the "
        f"best 1/{plan.study.rungs.reduction} so far in the evaluated objectives."
    )


def _look_ahead_study(
    situation: Situation, launch: Launch, *, refuse: bool, simulate: bool
) -> Outlook:
    plan, study = situation.plan, situation.plan.study
    # Find the remaining trials, look by look, and the power of the seeds.
    tasks, *later = [
        [task for part in situation.tasks(missing) for task in part]
        for missing in situation.rounds()
    ]
    noise = ledger_noise(situation)
    power = power_of(situation, launch, noise)
    _raise_refusal(power.refusal if refuse else None)
    resumed_steps = situation.begun(tasks)
    # Predict their cost.
    looks = [
        [Work(task.config, task.way or "train", resumed_steps.get(task.key, 0)) for task in look]
        for look in (tasks, *later)
    ]
    # A probe times trainings and, where nothing else is missing, evaluations.
    timed = [task for task in tasks if task.source is None] or [
        task for task in tasks if task.way == "evaluate"
    ]
    different = list({task.cell: task.config for task in timed}.values())
    predictor = _predictor(looks[0], different[:PROBED], situation, launch)
    predicted = predictor.forecast(looks[0])
    if study.sequential is not None:
        predicted = with_looks(predicted, [predictor.forecast(works) for works in looks[1:]])
    budget = Budget.of(launch, predicted)
    refusals = [
        power.refusal,
        admission.refusal(predicted, launch),
        budget.refusal(situation) if budget else None,
    ]
    if refuse:
        for refusal in refusals:
            _raise_refusal(refusal)
    # Describe the plan.
    num_trials, num_left = len(situation.trials()), len(tasks)
    sizes = f"{len(plan.cells)} configurations"
    sizes += (
        f" x {len(study.all_seeds)} seeds = {num_trials} trials"
        if study.sequential is None
        else f", {study.seeds_text}: {num_trials} trials up to the present look"
    )
    lines = [
        study.title,
        f"{study.design.name}: {sizes}, {num_trials - num_left} of them ended, in {situation.path}",
        *study.design.notes(),
        *_begun_text(len(resumed_steps)),
        *_reason_texts(situation, tasks),
        *_old_ledger_text(situation, num_left),
        *describe(predicted, datetime.now()),
        *power.sentences,
        *(_expected_text(situation, launch, predictor, noise) if simulate else ()),
    ]
    reasons = tuple(reason for reason in refusals if reason is not None)
    return Outlook(num_trials, num_left, predicted, "\n".join(lines), reasons)


def _look_ahead_search(situation: SearchSituation, launch: Launch, refuse: bool) -> Outlook:
    plan, study = situation.plan, situation.plan.study
    record = situation.record()
    proposed = record.trials if record else ()
    open_keys = {trial.key for trial in proposed if trial.key and trial.state not in ENDED}
    num_resumed = sum(newest_step(situation.ledger.run_dir(key)) > 0 for key in open_keys)
    num_trials = max(study.num_trials, len(proposed))
    num_left = num_trials - sum(trial.state in ENDED for trial in proposed)
    # Predict as if every trial ran to its end with the recipe's own settings.
    works = [Work(plan.base)] * num_left
    predicted = _predictor(works, [plan.base], situation, launch).forecast(works)
    refusal = admission.refusal(predicted, launch)
    _raise_refusal(refusal if refuse else None)
    objectives = ", ".join(
        f"{o.title} {'up' if o.higher_is_better else 'down'}" for o in study.objectives
    )
    lines = [
        study.title,
        f"search over {len(study.space)} settings ({', '.join(study.space)}); "
        f"objectives: {objectives}",
        f"{num_trials} trials, {num_trials - num_left} of them ended, in {situation.path}",
        rungs_text(plan),
        *_begun_text(num_resumed),
        *_old_ledger_text(situation, num_left),
        *describe(predicted, datetime.now()),
        *(["This holds if no trial is stopped early."] if plan.rungs and num_left else []),
    ]
    return Outlook(
        num_trials, num_left, predicted, "\n".join(lines), () if refusal is None else (refusal,)
    )


@dataclass(frozen=True, slots=True)
class Predictor:
    """Predicts the cost of work from the ledger and from a probe.

    Attributes:
        launch: The resources.
        history: Entries of the ledger of the same recipe, newest first.
        costs: Costs from a probe.
    """

    launch: Launch
    history: tuple[LedgerEntry, ...]
    costs: tuple[Cost, ...] = ()

    def forecast(self, works: Sequence[Work]) -> Forecast:
        """Predict the cost of ``works``."""
        launch = self.launch
        return forecast(
            works,
            concurrent=launch.concurrent,
            cpus=launch.cpus_per_trial,
            gpus=launch.gpus_per_trial,
            costs=self.costs,
            history=self.history,
            price_per_hour=launch.price_per_hour,
        )

    def training_seconds(self, configs: Sequence[RunConfig]) -> tuple[float, ...] | None:
        """Predict the likely seconds of whole trainings; ``None`` where one is unknown."""
        launch = self.launch
        return training_seconds(
            configs,
            concurrent=launch.concurrent,
            cpus=launch.cpus_per_trial,
            gpus=launch.gpus_per_trial,
            costs=self.costs,
            history=self.history,
        )


def _predictor(
    works: Sequence[Work],
    probed: Sequence[RunConfig],
    situation: Situation | SearchSituation,
    launch: Launch,
) -> Predictor:
    """Return what predicts the cost of ``works``.

    A probe runs only where the ledger has no history of such trainings, and only on this machine.

    Args:
        works: The remaining work.
        probed: The trainings to probe.
        situation: The study or search; the history of its recipe counts.
        launch: The resources.
    """
    study = situation.plan.study
    for work in works:
        if work.kind == "train":
            check_shares(work.config, launch.world_size)
    predictor = Predictor(launch, tuple(situation.ledger.history(study.recipe)))
    is_known = predictor.forecast(works).wall_s is not None
    if is_known or study.train != TRAIN or not probed or not launch.probe:
        return predictor
    if resolve_address(launch.address) != "local":
        # This machine may differ from the nodes, and a wrong time is worse than none.
        click.echo(
            "The time is unknown: the trainings run on a cluster, and the ledger has none like "
            "them yet.",
            err=True,
        )
        return predictor
    click.echo("There is no history of such trainings, so a few steps are timed first.", err=True)
    try:
        costs = probe(probed, num_threads=max(round(launch.cpus_per_trial), 1))
    except ProbeError as error:
        click.echo(f"Nothing can be predicted: {error}", err=True)
        return predictor
    return replace(predictor, costs=costs)


def _expected_text(
    situation: Situation, launch: Launch, predictor: Predictor, noise: Mapping[str, SeedNoise]
) -> list[str]:
    firsts = [trial.config for trial in situation.plan.trials if trial.replicate == 0]
    sds = {key: estimate.sd for key, estimate in noise.items()}
    return expected_lines(situation, launch, predictor.training_seconds(firsts), sds)


def _raise_refusal(refusal: str | None) -> None:
    if refusal is not None:
        raise ValueError(refusal)


def _begun_text(number: int) -> list[str]:
    return [f"{number} go on from a checkpoint."] if number else []


def _reason_texts(situation: Situation, tasks: Sequence[Task]) -> list[str]:
    shared = sum(task.prefix_shared for task in tasks)
    once = (
        f"{shared} trainings share their first steps with others: those that start after the first "
        "has done these steps go on from there."
    )
    reasons = (
        f"{number} of them although the ledger has their settings: {reason}"
        for reason, number in situation.reasons(tasks).items()
    )
    return [*([once] if shared else []), *reasons]


def _old_ledger_text(situation: Situation | SearchSituation, num_left: int) -> list[str]:
    sentence = situation.ledger.describe_old_results() if num_left else None
    return [] if sentence is None else [sentence]
