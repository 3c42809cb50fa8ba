"""Verbs that run no trial: status, report, and filling MLflow again."""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sweeps.core.design.study import Study
from sweeps.core.findings.look_text import claim_lines
from sweeps.core.findings.looks import budget_stop
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import SearchSituation, Situation, Task, survey
from sweeps.core.slurm import queue
from sweeps.core.slurm.submissions import Submissions
from sweeps.core.store.leases import Leases
from sweeps.core.store.runs import newest_step
from sweeps.core.store.study_folder import StudyFolder
from sweeps.core.store.study_record import with_results
from toco.tracking import Tracker

if TYPE_CHECKING:
    from sweeps.core.design.search_space import SearchStudy


_MOST_LINES = 40
"""Configurations that get a line each; more are counted."""


def print_status(study: Study | SearchStudy, launch: Launch, watch: float | None = None) -> int:
    """Print which trials have a result, which run where, which failed and why; return 0.

    Args:
        study: The study or search.
        launch: Has the folder of the results.
        watch: Print it again every so many seconds until all trials have ended; ``None`` for once.
    """
    situation = survey(study, launch.storage)
    printed = ""
    while True:
        # Read before the text: what ends in between is shown once more.
        is_complete = not _is_missing(situation)
        text = "\n".join(
            _study_status(situation)
            if isinstance(situation, Situation)
            else _search_status(situation)
        )
        if watch is not None and sys.stdout.isatty():
            click.clear()
            printed = ""
        if text != printed:
            click.echo(text)
        if watch is None or is_complete:
            return 0
        printed = text
        time.sleep(watch)


def _is_missing(situation: Situation | SearchSituation) -> bool:
    if isinstance(situation, Situation):
        return bool(situation.missing())
    return not situation.is_complete


def print_report(
    study: Study | SearchStudy, launch: Launch, bundle: Path | None = None, *, stdout: bool = False
) -> int:
    """Write the report of the present state and print it; return its exit status.

    Args:
        study: The study or search.
        launch: Has the folder of the results.
        bundle: Where to write a study's archive for reviewers; ``None`` for no archive.
        stdout: Print the report and write nothing.

    Raises:
        ValueError: ``stdout`` is given together with a bundle.
    """
    from sweeps.core.report import write_bundle
    from sweeps.core.run.live_page import print_report_of, write_report_of

    situation = survey(study, launch.storage)
    _warn_of_nothing(situation)
    if stdout:
        if bundle is not None:
            raise ValueError(
                f"--stdout writes nothing, so there is no --bundle {bundle}: give one of the two."
            )
        return print_report_of(situation)
    situation.write()
    report = write_report_of(situation, running=_is_running(situation))
    click.echo(f"{report.text}\n\nReport: {report.page}")
    if bundle is not None:
        click.echo(f"Bundle: {write_bundle(situation.path, bundle)}")
    return report.exit_code


def sync(study: Study | SearchStudy, launch: Launch) -> int:
    """Fill MLflow from the ledger; return 0 where it has everything, else 1."""
    from sweeps.core.run.live_page import write_report_of
    from sweeps.core.run.mlflow_mirror import Mirror, closing_sentence

    situation = survey(study, launch.storage)
    situation.write()
    _warn_of_nothing(situation)
    trials = situation.trials()
    mirror = Mirror(Tracker(launch.tracking, study.name), situation, trials)
    mirror.start()
    mirror.drain()
    report = write_report_of(situation, running=_is_running(situation))
    is_complete = (
        not situation.missing() if isinstance(situation, Situation) else situation.is_complete
    )
    is_sent = mirror.close(report.files, "FINISHED" if is_complete else "KILLED", report.note)
    if is_sent:
        number = len(situation.ledger.finished_keys(trials))
        click.echo(f"MLflow has {number} trial{'' if number == 1 else 's'} of {study.name}.")
    click.echo(closing_sentence(launch, mirror.pages, complete=is_sent))
    return 0 if is_sent else 1


def _warn_of_nothing(situation: Situation | SearchSituation) -> None:
    if isinstance(situation, Situation) and len(situation.missing()) == len(situation.trials()):
        warnings.warn(f"No trial of {situation.plan.study.name} has ended yet.", stacklevel=3)


def _study_status(situation: Situation) -> list[str]:
    leases, missing = _leases(situation), situation.missing()
    total = len(situation.trials())
    num_ended = total - len(missing)
    lines = [
        f"{situation.plan.study.title}: {num_ended} of {total} trials "
        f"{'has' if num_ended == 1 else 'have'} ended{_of_the_plan(situation)}.",
        *_looks_status(situation, missing),
    ]
    states: Counter[str] = Counter()
    for task in missing:
        step = max(newest_step(situation.ledger.run_dir(task.key)), 0)
        step_text = f"step {step} of {task.config.num_steps}"
        if (holder := leases.holder(task.key)) is not None:
            state, text = "leased by a running driver", f"{step_text}, {holder}"
        elif failures := situation.ledger.failures(task.key):
            times = "once" if len(failures) == 1 else f"{len(failures)} times, at last"
            state, text = "failed", f"failed {times}: {failures[-1].reason}"
        else:
            state, text = (
                ("begun", f"{step_text}, no driver runs it") if step else ("not begun", "")
            )
        states[state] += 1
        lines += [f"  {task.name}: {text}"] if text else []
    if (stored := StudyFolder(situation.path).stored()) is not None:
        stop = budget_stop(with_results(stored, situation.path), situation.looks())
        lines += [] if stop is None else [stop.sentence]
    if missing:
        lines.append(
            "Missing: " + ", ".join(f"{number} {state}" for state, number in states.items()) + "."
        )
        lines += _slurm_status(situation, is_run="leased by a running driver" in states)
        ready, waiting = situation.tasks()
        lines += [
            f"{number} because of {reason}"
            for reason, number in situation.reasons(ready + waiting).items()
        ]
    return lines


def _slurm_status(situation: Situation, *, is_run: bool) -> list[str]:
    """Say what waits in Slurm's queue and why; and, where nothing runs, what to do.

    Args:
        situation: The study, which lacks trials.
        is_run: Whether a driver runs a trial.
    """
    submissions = Submissions(situation.path).all()
    try:
        queued = queue.tasks_of(submission.job for submission in submissions)
    except queue.SlurmError as error:
        return [str(error)]
    lines = [
        f"Slurm job {job}, tasks: {', '.join(each.text for each in tasks)}."
        for job, tasks in queued.items()
    ]
    if not lines and not is_run:
        where = "and no submission of this study is in Slurm's queue: submit it again"
        lines.append(
            f"No driver runs{f', {where}.' if submissions else ': run the study, or submit it.'}"
        )
    return lines


def _of_the_plan(situation: Situation) -> str:
    """Say of how many trials the counts are a part; empty for a fixed list of seeds."""
    if situation.plan.study.sequential is None:
        return ""
    return f", of those needed so far; at most {len(situation.plan.trials)}"


def _looks_status(situation: Situation, missing: Iterable[Task]) -> list[str]:
    """Describe the looks of a sequential study, and the seeds of its configurations."""
    plan = situation.plan
    if plan.study.sequential is None:
        return []
    looks = situation.looks()
    num_missing = Counter(task.cell for task in missing)
    seeds = [
        f"{number - num_missing[cell.label]} of {number}, at most {len(cell.seeds)}"
        for number, cell in zip(looks.num_seeds, plan.cells, strict=True)
    ]
    if len(seeds) > _MOST_LINES:
        counts = Counter(seeds).items()
        lines = [f"  {text}: {number} configurations" for text, number in counts]
    else:
        lines = [f"  {cell.label}: {text}" for cell, text in zip(plan.cells, seeds, strict=True)]
    return [
        *claim_lines(looks, plan.study.sequential.looks),
        "Seeds with a result, of those needed so far:",
        *lines,
    ]


def _search_status(situation: SearchSituation) -> list[str]:
    study, record, holder = (
        situation.plan.study,
        situation.record(),
        _leases(situation).holder(situation.lease),
    )
    trials = record.trials if record else ()
    counts = Counter(trial.state for trial in trials)
    counts_text = ", ".join(f"{number} {state}" for state, number in counts.items()) or "none begun"
    return [
        f"{study.title}: {counts_text}, of {max(study.num_trials, len(trials))} trials.",
        f"It is run by {holder}." if holder else "No driver runs it now.",
        *(
            f"  trial {trial.number}: {trial.state_text}"
            + (f", {trial.message}" if trial.message else "")
            for trial in trials
        ),
    ]


def _is_running(situation: Situation | SearchSituation) -> bool:
    """Return whether a driver runs a search. For a study the report reads ``progress.json``."""
    return (
        not isinstance(situation, Situation)
        and _leases(situation).holder(situation.lease) is not None
    )


def _leases(situation: Situation | SearchSituation) -> Leases:
    """Return the leases of the storage, to read them only."""
    return Leases(situation.ledger.storage, "a reader of the status")
