"""The plan of a study or a search: trials, cost and power, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import click

from sweeps.core.design.search_space import SearchPlan, SearchStudy
from sweeps.core.design.study import TRAIN, Study
from sweeps.core.plan import admission
from sweeps.core.plan.budget import Budget
from sweeps.core.plan.estimates import Work
from sweeps.core.plan.forecast import describe, forecast
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.power import PowerCheck, power_check, seed_noise
from sweeps.core.plan.probe import Cost, ProbeError, probe
from sweeps.core.plan.survey import SearchSituation, Situation, Task, survey
from sweeps.core.store.forecast_record import Forecast
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
    outlook = look_ahead(situation, launch)
    click.echo(outlook.text)
    for reason in outlook.refusals:
        click.echo(f"It would be refused. {reason}")
    return 1 if outlook.refusals else 0


def look_ahead(
    situation: Situation | SearchSituation, launch: Launch, *, refuse: bool = False
) -> Outlook:
    """Plan the remaining trials and predict their cost.

    Args:
        situation: The study or search.
        launch: The resources.
        refuse: Raise the first refusal, before anything is timed for the forecast.

    Raises:
        ValueError: A training cannot be divided among the GPUs of a trial; or a refusal.
    """
    if isinstance(situation, Situation):
        return _look_ahead_study(situation, launch, refuse)
    return _look_ahead_search(situation, launch, refuse)


def power_of(situation: Situation, launch: Launch) -> PowerCheck:
    """Compute the power of the study's seeds, with the seed noise in the ledger."""
    plan = situation.plan
    history, base = tuple(situation.ledger.history(plan.study.recipe)), plan.study.base()
    measured = {
        key: seed_noise(history, base, key) for key in {key for _, key in plan.tests.places}
    }
    noise = {key: estimate for key, estimate in measured.items() if estimate is not None}
    return power_check(plan, noise, accept_underpowered=launch.accept_underpowered)


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


def _look_ahead_study(situation: Situation, launch: Launch, refuse: bool) -> Outlook:
    plan, study = situation.plan, situation.plan.study
    # Find the remaining trials and the power of the seeds.
    ready, waiting = situation.tasks()
    tasks = [*ready, *waiting]
    power = power_of(situation, launch)
    _raise_refusal(power.refusal if refuse else None)
    trained = [task for task in tasks if task.source is None]
    resumed_steps = situation.begun(tasks)
    # Predict their cost.
    works = [
        Work(task.config, task.way or "train", resumed_steps.get(task.key, 0)) for task in tasks
    ]
    different = list({task.cell: task.config for task in trained}.values())
    predicted = _predict(works, different[:PROBED], situation, launch)
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
    num_trials, num_left = len(plan.trials), len(tasks)
    lines = [
        study.title,
        f"{study.design.name}: {len(plan.cells)} configurations x {len(study.all_seeds)} seeds = "
        f"{num_trials} trials, {num_trials - num_left} of them ended, in {situation.path}",
        *study.design.notes(),
        *_begun_text(len(resumed_steps)),
        *_reason_texts(situation, tasks),
        *_old_ledger_text(situation, num_left),
        *describe(predicted, datetime.now()),
        *power.sentences,
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
    predicted = _predict([Work(plan.base)] * num_left, [plan.base], situation, launch)
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


def _predict(
    works: Sequence[Work],
    probed: Sequence[RunConfig],
    situation: Situation | SearchSituation,
    launch: Launch,
) -> Forecast:
    """Predict the cost of ``works`` from the ledger, or from a probe.

    A probe runs only where the ledger has no history of such trainings.

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

    def predict(costs: Sequence[Cost]) -> Forecast:
        return forecast(
            works,
            concurrent=launch.concurrent,
            cpus=launch.cpus_per_trial,
            gpus=launch.gpus_per_trial,
            costs=costs,
            history=situation.ledger.history(study.recipe),
            price_per_hour=launch.price_per_hour,
        )

    first = predict(())
    if first.wall_s is not None or study.train != TRAIN:
        return first
    click.echo("There is no history of such trainings, so a few steps are timed first.", err=True)
    try:
        return predict(probe(probed, num_threads=max(round(launch.cpus_per_trial), 1)))
    except ProbeError as error:
        click.echo(f"Nothing can be predicted: {error}", err=True)
        return first


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
