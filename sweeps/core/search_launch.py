"""What can be done with a search: run it, plan it, ask for its status or its report, fill MLflow from it again."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime

import click

from sweeps.core import ray_environment
from sweeps.core.forecast import Forecast, Work, forecast
from sweeps.core.launch import FAILED, STOPPED
from sweeps.core.lease import Leases
from sweeps.core.options import Launch
from sweeps.core.probe import Cost, ProbeError, probe
from sweeps.core.report.search_report import write_search_report
from sweeps.core.search import SearchPlan, SearchStudy
from sweeps.core.search_driver import Proposal, SearchDriver, SearchMirror
from sweeps.core.search_record import read_search_record
from sweeps.core.search_situation import SearchSituation, survey_search
from sweeps.core.study import TRAIN
from toco.tracking import Tracker
from toco.tracking.mlflow_store import public_uri


def run_search_study(study: SearchStudy, launch: Launch) -> int:
    """Run what is missing of ``study``, write its report and print it.

    Returns:
        0, or 4 where trials failed, 130 where it was stopped.

    Raises:
        ValueError: The search, its data or the launch is not valid, or another driver runs this search.
        OSError: A folder or file cannot be read or written, or there is no cluster at the address.
    """
    address = ray_environment.resolve_address(launch.address)
    tracker = Tracker(launch.tracking, study.name)
    situation = survey_search(study, launch.storage)
    lease = f"search-{situation.plan.folder_name}"
    started = time.monotonic()
    with Leases(launch.storage, f"the search {study.name}") as leases:
        if not leases.acquire([lease]):
            raise ValueError(
                f"{leases.holder(lease)} runs this search now, and proposals depend on what came before: one driver "
                "asks for them. Wait for it, or give it more trainings at once with --concurrent."
            )
        situation.write(None)
        driver = SearchDriver(situation, launch, leases)
        if not driver.recover():
            report = write_search_report(situation.path)
            click.echo(f"All {study.num_trials} trials have ended.\n\n{report.text}\n\nReport: {report.page}")
            return 0
        foretold = _foretell(situation, driver.num_left, launch)
        situation.write(foretold.to_json())
        click.echo(_plan_text(situation, foretold, driver.num_left, driver.num_begun))
        complete, failed = driver.run(tracker, address)
        if not complete:
            click.echo("Stopped. The same command goes on from here.")
            return STOPPED
        report = write_search_report(situation.path)
        mirrored = driver.close(report, failed=bool(failed))
    click.echo(f"\n{report.text}\n\nReport: {report.page}\nIt took {time.monotonic() - started:.0f} s.")
    if mirrored:
        click.echo(f"MLflow: experiment {study.name} in {public_uri(launch.tracking)}.")
    if failed:
        click.echo(f"{len(failed)} trials failed; the same command tries them again.")
    return FAILED if failed else 0


def print_search_plan(study: SearchStudy, launch: Launch) -> int:
    """Print what ``study`` would run and what that would cost, if no trial were stopped early; returns 0."""
    situation = survey_search(study, launch.storage)
    states = _states(situation)
    ended = states["finished"] + states["stopped"] + states["diverged"]
    left = max(study.num_trials, sum(states.values())) - ended
    click.echo(_plan_text(situation, _foretell(situation, left, launch), left, None))
    return 0


def print_search_status(study: SearchStudy, launch: Launch) -> int:
    """Print how many trials are in which state, and what failed; returns 0."""
    situation = survey_search(study, launch.storage)
    states = _states(situation)
    holder = Leases(launch.storage, "somebody who asks for the status").holder(f"search-{situation.plan.folder_name}")
    counted = ", ".join(f"{number} {state}" for state, number in states.items()) or "none begun"
    lines = [f"{study.title}: {counted}, of {study.num_trials} trials."]
    lines.append(f"It is run by {holder}." if holder else "Nobody runs it now.")
    if states:
        record = read_search_record(situation.path)
        lines += [
            f"  trial {t.number}: {t.state_text}" + (f", {t.message}" if t.message else "") for t in record.trials
        ]
    click.echo("\n".join(lines))
    return 0


def print_search_report(study: SearchStudy, launch: Launch) -> int:
    """Write the report of the search as it stands, and print it; returns 0, or 4 where trials failed."""
    situation = survey_search(study, launch.storage)
    situation.write(None)
    report = write_search_report(situation.path)
    click.echo(f"{report.text}\n\nReport: {report.page}")
    return FAILED if _states(situation)["failed"] else 0


def sync_search(study: SearchStudy, launch: Launch) -> int:
    """Fill MLflow from the run folders; returns 0 where it has everything, else 1."""
    situation = survey_search(study, launch.storage)
    situation.write(None)
    report = write_search_report(situation.path)
    proposals: dict[str, Proposal] = {}
    for trial in read_search_record(situation.path).trials:
        config, identity = situation.proposal(trial.values)
        proposals.setdefault(identity.key, Proposal(trial.number, config, identity))
    mirror = SearchMirror(Tracker(launch.tracking, study.name), situation, proposals)
    mirror.start()
    complete = mirror.close(report.files, "FINISHED" if report.is_complete else "KILLED", report.note)
    click.echo(f"MLflow has the search {study.name}." if complete else "MLflow does not have everything.")
    return 0 if complete else 1


def _states(situation: SearchSituation) -> Counter[str]:
    if not situation.journal.is_file():
        return Counter()
    situation.write(None)
    return Counter(trial.state for trial in read_search_record(situation.path).trials)


def _foretell(situation: SearchSituation, left: int, launch: Launch) -> Forecast:
    """What ``left`` full trainings with the recipe's own settings cost."""
    plan, ledger = situation.plan, situation.ledger

    def foretold(costs: tuple[Cost, ...]) -> Forecast:
        return forecast(
            [Work(plan.base)] * left,
            concurrent=launch.concurrent,
            cpus=launch.cpus_per_trial,
            gpus=launch.gpus_per_trial,
            costs=costs,
            history=ledger.history(plan.study.recipe),
            price_per_gpu_hour=launch.price_per_hour,
        )

    first = foretold(())
    if not left or first.wall_s is not None or plan.study.train != TRAIN:
        return first
    click.echo("There is no history of such trainings, so a few steps are timed first.", err=True)
    try:
        return foretold(probe([plan.base], num_threads=max(round(launch.cpus_per_trial), 1)))
    except ProbeError as error:
        click.echo(f"Nothing can be foretold: {error}", err=True)
        return first


def _plan_text(situation: SearchSituation, foretold: Forecast, left: int, begun: int | None) -> str:
    """The plan for people."""
    plan = situation.plan
    study = plan.study
    objectives = ", ".join(f"{o.title} {'up' if o.higher_is_better else 'down'}" for o in study.objectives)
    lines = [
        study.title,
        f"search over {len(study.space)} settings ({', '.join(study.space)}); objectives: {objectives}",
        f"{study.num_trials} trials, {study.num_trials - left} of them ended, in {situation.path}",
        rungs_text(plan),
    ]
    if begun:
        lines.append(f"{begun} go on from a checkpoint.")
    lines += foretold.sentences(datetime.now())
    if plan.rungs and left:
        lines.append("That is if no trial were stopped early.")
    return "\n".join(lines)


def rungs_text(plan: SearchPlan) -> str:
    """When trials are stopped early, in a sentence."""
    if not plan.rungs or plan.study.rungs is None:
        return "No trial is stopped early: no rung lies between where the last loss term has acted and the end."
    steps = ", ".join(map(str, plan.rungs))
    return (
        f"At the rungs (step {steps} of {plan.base.num_steps}) a trial goes on if it is among the best "
        f"1/{plan.study.rungs.reduction} so far in what evaluations measure."
    )
