"""What can be done with a search: run it, plan it, ask for its status or its report, fill MLflow from it again."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime

import click

from sweeps.core.design.search_space import SearchPlan, SearchStudy
from sweeps.core.findings.exit_status import INCOMPLETE
from sweeps.core.plan import admission, ray_environment
from sweeps.core.plan.forecast import Forecast, Work, scorecard
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.plan_text import foretell_works
from sweeps.core.plan.search_survey import SearchSituation, survey_search
from sweeps.core.plan.sizes import check_sizes
from sweeps.core.report.search_report import search_text, write_search_report
from sweeps.core.run.mlflow_mirror import closing_sentence
from sweeps.core.run.search_driver import Proposal, SearchDriver, SearchMirror
from sweeps.core.store.leases import Leases
from sweeps.core.store.search_record import ENDED, SearchRecord, read_search_record, search_file, with_trials
from toco.room import telling_shortage
from toco.tracking import Tracker
from toco.train.distributed import check_shares


def run_search_study(study: SearchStudy, launch: Launch) -> int:
    """Run what is missing of ``study``, write its report and print it.

    Returns:
        0, or 4 where trials failed.

    Raises:
        NoRoomError: A disk has no room for the trials.
        ValueError: The search, its data or the launch is not valid, or another driver runs this search.
        OSError: A folder or file cannot be read or written, or there is no cluster at the address.
    """
    address = ray_environment.resolve_address(launch.address)
    tracker = Tracker(launch.tracking, study.name)
    situation = survey_search(study, launch.storage)
    check_sizes(situation.plan.corners(), study.recipe, study.train)
    started = time.monotonic()
    with Leases(launch.storage, f"the search {study.name}") as leases:
        if not leases.acquire([situation.lease]):
            raise ValueError(
                f"{leases.holder(situation.lease)} runs this search now, and proposals depend on what came before: one "
                "driver asks for them. Wait for it, or give it more trainings at once with --concurrent."
            )
        situation.write()
        driver = SearchDriver(situation, launch, leases)
        if not driver.recover():
            report = driver.write_report(running=False)
            click.echo(f"All {study.num_trials} trials have ended.\n\n{report.text}\n\nReport: {report.page}")
            return 0
        foretold = _foretell(situation, driver.num_left, launch)
        if (refusal := admission.refusal(foretold, launch)) is not None:
            raise ValueError(refusal)
        click.echo(_plan_text(situation, foretold, driver.num_left, driver.num_begun))
        with telling_shortage(launch.storage, foretold.trial_bytes):
            failed = driver.run(tracker, address, foretold.trial_bytes)
        report = driver.write_report(running=False)
        mlflow = driver.close(report, failed=bool(failed))
    click.echo(f"\n{report.text}\n\nReport: {report.page}")
    entries = [entry for key in driver.proposals if (entry := situation.ledger.entry(key)) is not None]
    for line in scorecard(foretold.to_json(), entries, time.monotonic() - started):
        click.echo(line)
    click.echo(mlflow)
    if failed:
        click.echo(f"{len(failed)} trials failed; the same command tries them again.")
    return INCOMPLETE if failed else 0


def print_search_plan(study: SearchStudy, launch: Launch) -> int:
    """Print what ``study`` would run and what that would cost, if no trial were stopped early.

    Returns:
        0, or 1 where it would be refused.
    """
    situation = survey_search(study, launch.storage)
    check_sizes(situation.plan.corners(), study.recipe, study.train)
    record = _record(situation)
    trials = record.trials if record else ()
    left = max(study.num_trials, len(trials)) - sum(trial.state in ENDED for trial in trials)
    foretold = _foretell(situation, left, launch)
    click.echo(_plan_text(situation, foretold, left, None))
    if (refusal := admission.refusal(foretold, launch)) is not None:
        click.echo(f"It would be refused. {refusal}")
        return 1
    return 0


def print_search_status(study: SearchStudy, launch: Launch) -> int:
    """Print how many trials are in which state, and what failed; returns 0."""
    situation = survey_search(study, launch.storage)
    record, holder = _record(situation), _holder(situation)
    trials = record.trials if record else ()
    states = Counter(trial.state for trial in trials)
    counted = ", ".join(f"{number} {state}" for state, number in states.items()) or "none begun"
    lines = [f"{study.title}: {counted}, of {max(study.num_trials, len(trials))} trials."]
    lines.append(f"It is run by {holder}." if holder else "Nobody runs it now.")
    lines += [f"  trial {t.number}: {t.state_text}" + (f", {t.message}" if t.message else "") for t in trials]
    click.echo("\n".join(lines))
    return 0


def print_search_report(study: SearchStudy, launch: Launch, *, stdout: bool = False) -> int:
    """Write the report of the search as it stands, and print it; returns 0, or 4 where trials failed.

    With ``stdout`` it is printed and nothing is written.
    """
    situation = survey_search(study, launch.storage)
    if stdout:
        file = search_file(situation.plan, situation.journal.name, situation.inputs, start_id="")
        record = with_trials(file, situation.path)
        click.echo(search_text(record))
        return INCOMPLETE if any(trial.state == "failed" for trial in record.trials) else 0
    situation.write()
    report = write_search_report(situation.path, running=_holder(situation) is not None)
    click.echo(f"{report.text}\n\nReport: {report.page}")
    return INCOMPLETE if any(trial.state == "failed" for trial in read_search_record(situation.path).trials) else 0


def sync_search(study: SearchStudy, launch: Launch) -> int:
    """Fill MLflow from the run folders; returns 0 where it has everything, else 1."""
    situation = survey_search(study, launch.storage)
    situation.write()
    report = write_search_report(situation.path, running=_holder(situation) is not None)
    proposals: dict[str, Proposal] = {}
    for trial in read_search_record(situation.path).trials:
        config, identity = situation.proposal(trial.values)
        proposals.setdefault(identity.key, Proposal(trial.number, config, identity))
    mirror = SearchMirror(Tracker(launch.tracking, study.name), situation, proposals)
    mirror.start()
    complete = mirror.close(report.files, "FINISHED" if report.is_complete else "KILLED", report.note)
    if complete:
        click.echo(f"MLflow has the search {study.name}.")
    click.echo(closing_sentence(launch, mirror.pages, complete=complete))
    return 0 if complete else 1


def _record(situation: SearchSituation) -> SearchRecord | None:
    """The search as it stands; ``None`` where it has not begun with this code and data."""
    journal = situation.journal
    return read_search_record(situation.path, journal.name) if journal.is_file() else None


def _holder(situation: SearchSituation) -> str | None:
    """Who runs the search now, in words."""
    return Leases(situation.ledger.storage, "somebody who asks for the search").holder(situation.lease)


def _foretell(situation: SearchSituation, left: int, launch: Launch) -> Forecast:
    """What ``left`` full trainings with the recipe's own settings cost."""
    base = situation.plan.base
    check_shares(base, launch.world_size)
    return foretell_works([Work(base)] * left, [base], situation.plan.study, situation.ledger, launch)


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
    if left and (old := situation.ledger.without_digest()) is not None:
        lines.append(old)
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
