"""What can be asked of a study without running it: its status, its report, MLflow filled again."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import click

from sweeps.core.design.study import Study
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import Situation, survey
from sweeps.core.report import report_text, write_bundle, write_report
from sweeps.core.run.mlflow_mirror import Mirror, closing_sentence
from sweeps.core.store.leases import Leases
from sweeps.core.store.runs import newest_step
from sweeps.core.store.study_folder import StudyFolder, study_file
from sweeps.core.store.study_record import with_results
from toco.tracking import Tracker


def print_status(study: Study, storage: Path) -> int:
    """Print what is there, what runs where, what failed and why; returns 0."""
    situation = survey(study, storage)
    missing = situation.missing()
    leases = Leases(storage, "somebody who asks for the status")
    total = len(situation.plan.trials)
    there = total - len(missing)
    lines = [f"{situation.plan.study.title}: {there} of {total} trials {'is' if there == 1 else 'are'} there."]
    states: Counter[str] = Counter()
    for trial, identity in missing:
        step = max(newest_step(situation.ledger.run_dir(identity.key)), 0)
        failures = situation.ledger.failures(identity.key)
        holder = leases.holder(identity.key)
        if holder is not None:
            states["leased by a running driver"] += 1
            lines.append(f"  {trial.name}: step {step} of {trial.config.num_steps}, {holder}")
        elif failures:
            states["failed"] += 1
            times = "once" if len(failures) == 1 else f"{len(failures)} times, at last"
            lines.append(f"  {trial.name}: failed {times}: {failures[-1].reason}")
        elif step:
            states["begun"] += 1
            lines.append(f"  {trial.name}: step {step} of {trial.config.num_steps}, nobody runs it")
        else:
            states["not begun"] += 1
    if missing:
        lines.append("Missing: " + ", ".join(f"{number} {state}" for state, number in states.items()) + ".")
        lines += [f"{number} because of {reason}" for reason, number in _reasons(situation).items()]
    click.echo("\n".join(lines))
    return 0


def print_report(study: Study, storage: Path, bundle: Path | None, stdout: bool = False) -> int:
    """Write the report of the study as it stands, and print its table; returns the verdict's exit status.

    With ``stdout`` it prints the table and writes nothing.

    Raises:
        ValueError: ``stdout`` is asked for together with a bundle.
    """
    situation = survey(study, storage)
    if stdout:
        if bundle is not None:
            raise ValueError(f"--stdout writes nothing, so there is no --bundle {bundle}: give one of the two.")
        _warn_of_nothing(situation)
        now = study_file(situation.plan, situation.keys, situation.inputs, start_id="")
        text, exit_code = report_text(with_results(now, storage / situation.plan.folder_name))
        click.echo(text)
        return exit_code
    folder = _folder(situation)
    report = write_report(folder.path)
    click.echo(f"{report.text}\n\nReport: {report.page}")
    if bundle is not None:
        click.echo(f"Bundle: {write_bundle(folder.path, bundle)}")
    return report.exit_code


def sync(study: Study, launch: Launch) -> int:
    """Fill MLflow from the ledger; returns 0 where it has everything, else 1."""
    situation = survey(study, launch.storage)
    folder = _folder(situation)
    mirror = Mirror(Tracker(launch.tracking, study.name), folder, situation)
    mirror.start()
    mirror.drain()
    report = write_report(folder.path)
    complete = mirror.close(report.files, "KILLED" if situation.missing() else "FINISHED", report.note)
    there = len(situation.plan.trials) - len(situation.missing())
    if complete:
        click.echo(f"MLflow has {there} trial{'' if there == 1 else 's'} of {study.name}.")
    click.echo(closing_sentence(launch, mirror.pages, complete=complete))
    return 0 if complete else 1


def _folder(situation: Situation) -> StudyFolder:
    folder = StudyFolder(situation.ledger.storage / situation.plan.folder_name)
    folder.write_study(situation.plan, situation.keys, situation.inputs, None)
    _warn_of_nothing(situation)
    return folder


def _warn_of_nothing(situation: Situation) -> None:
    if len(situation.missing()) == len(situation.plan.trials):
        warnings.warn(f"None of the trials of {situation.plan.study.name} is there yet.", stacklevel=3)


def _reasons(situation: Situation) -> Counter[str]:
    now, later = situation.tasks()
    return situation.reasons(now + later)
