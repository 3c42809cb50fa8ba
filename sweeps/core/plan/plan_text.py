"""What a study would run, cost and be able to show, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sweeps.core.design.study import TRAIN, Study
from sweeps.core.plan import admission
from sweeps.core.plan.forecast import Forecast, Work, forecast
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.power import PowerCheck, power_check, seed_noise
from sweeps.core.plan.probe import Cost, ProbeError, probe
from sweeps.core.plan.sizes import check_sizes
from sweeps.core.plan.survey import Situation, Task, survey
from sweeps.core.store.ledger import Ledger
from toco.train.distributed import check_shares
from toco.train.run_config import RunConfig

if TYPE_CHECKING:
    from sweeps.core.design.search_space import SearchStudy

PROBED = 3
"""Different trainings that are probed, where there is no history."""


def print_plan(study: Study, launch: Launch) -> int:
    """Print the plan of ``study``; returns 0, or 1 where it would be refused."""
    situation = survey(study, launch.storage)
    now, later = situation.tasks()
    power = power_of(situation, launch)
    foretold = foretell(situation, now + later, launch)
    folder = launch.storage / situation.plan.folder_name
    click.echo(plan_text(situation, now, later, foretold, power, folder))
    refusals = [reason for reason in (power.refusal, admission.refusal(foretold, launch)) if reason is not None]
    for reason in refusals:
        click.echo(f"It would be refused. {reason}")
    return 1 if refusals else 0


def power_of(situation: Situation, launch: Launch) -> PowerCheck:
    """What the seeds of the study can show, with the seed noise that the ledger knows."""
    plan = situation.plan
    noise = {}
    for key in {key for _, key in plan.comparisons()}:
        found = seed_noise(situation.ledger.history(plan.study.recipe), plan.study.base(), key)
        if found is not None:
            noise[key] = found
    return power_check(plan, noise, accept_underpowered=launch.accept_underpowered)


def foretell(situation: Situation, tasks: Sequence[Task], launch: Launch) -> Forecast:
    """What ``tasks`` will cost.

    Raises:
        ValueError: There are trainings among them that cannot run, or that cannot be shared by as many GPUs as a trial
            gets.
    """
    study = situation.plan.study
    check_sizes({task.trial.cell: task.trial.config for task in tasks}.values(), study.recipe, study.train)
    for task in tasks:
        if task.source is None:
            check_shares(task.trial.config, launch.world_size)
    begun = situation.begun(tasks)
    works = [Work(task.trial.config, task.way or "train", begun.get(task.key, 0)) for task in tasks]
    configs = list({task.trial.cell: task.trial.config for task in tasks if task.source is None}.values())
    return foretell_works(works, configs[:PROBED], study, situation.ledger, launch)


def foretell_works(
    works: Sequence[Work], probed: Sequence[RunConfig], study: Study | SearchStudy, ledger: Ledger, launch: Launch
) -> Forecast:
    """What ``works`` will cost, from the ledger and, where that knows nothing like them, from a probe.

    Args:
        works: What is left to run.
        probed: The trainings that are probed then.
        study: What asks for them: its recipe's history counts.
        ledger: Of the trials that ended.
        launch: The resources.
    """

    def foretold(costs: Sequence[Cost]) -> Forecast:
        return forecast(
            works,
            concurrent=launch.concurrent,
            cpus=launch.cpus_per_trial,
            gpus=launch.gpus_per_trial,
            costs=costs,
            history=ledger.history(study.recipe),
            price_per_hour=launch.price_per_hour,
        )

    first = foretold(())
    if first.wall_s is not None or study.train != TRAIN:
        return first
    click.echo("There is no history of such trainings, so a few steps are timed first.", err=True)
    try:
        return foretold(probe(probed, num_threads=max(round(launch.cpus_per_trial), 1)))
    except ProbeError as error:
        click.echo(f"Nothing can be foretold: {error}", err=True)
        return first


def plan_text(
    situation: Situation,
    now: Sequence[Task],
    later: Sequence[Task],
    foretold: Forecast,
    power: PowerCheck,
    folder: Path,
) -> str:
    """The plan for people."""
    plan = situation.plan
    tasks = [*now, *later]
    there = len(plan.trials) - len(tasks)
    cells = len(plan.cells)
    seeds = len(plan.study.seeds)
    lines = [
        plan.study.title,
        f"{plan.study.design.name}: {cells} cells x {seeds} seeds = {len(plan.trials)} trials, {there} of them there, "
        f"in {folder}",
        *plan.study.design.notes(),
    ]
    begun = situation.begun(tasks)
    if begun:
        lines.append(f"{len(begun)} go on from a checkpoint.")
    shared = sum(task.prefix_shared for task in tasks)
    if shared:
        lines.append(
            f"{shared} trainings have their first steps in common with others, and only one of each does them."
        )
    lines += [
        f"{number} of them because of this, although their settings are in the ledger: {reason}"
        for reason, number in situation.reasons(tasks).items()
    ]
    if tasks and (old := situation.ledger.without_digest()) is not None:
        lines.append(old)
    lines += foretold.sentences(datetime.now())
    lines += power.sentences
    return "\n".join(lines)
