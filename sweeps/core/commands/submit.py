"""The verb ``submit``: queue the drivers of a study in Slurm, or cancel them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import click

from sweeps.core.design.study import Study
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.plan_text import ledger_noise, power_of
from sweeps.core.plan.survey import Situation, survey
from sweeps.core.slurm import queue
from sweeps.core.slurm.script import TEMPLATE, Resources, script_text
from sweeps.core.slurm.submissions import LOG, Submission, Submissions
from toco.passwords import public_uri
from toco.tracking import has_password


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """Options of ``submit``; those of Slurm have the meaning that sbatch gives them.

    Attributes:
        array: Number of drivers.
        named: Values of ``--time``, ``--gres``, ``--partition`` and ``--account``, where given.
        further: Further options of sbatch, by long name.
        resources: Trials of a task.
        template: The script to fill.
    """

    array: int
    named: Mapping[str, str]
    further: Mapping[str, str]
    resources: Resources
    template: Path | None


def submit(
    study: Study, launch: Launch, options: SlurmOptions, run: Sequence[str], status: Sequence[str]
) -> int:
    """Submit an array of drivers that run the missing trials of ``study``; return 0.

    Everything that a driver would refuse is refused before.

    Args:
        study: The study.
        launch: Has the storage and the MLflow store.
        options: What Slurm is asked for.
        run: Command that runs the study, without the resources of a trial.
        status: Command that shows the status of the study.

    Raises:
        ValueError: The study cannot run, a script cannot be made, or Slurm refuses it.
    """
    situation, num_tasks = _checked(study, launch, options)
    if num_tasks == 0:
        click.echo(f"All {len(situation.trials())} trials have ended; nothing is submitted.")
        return 0
    command, sbatch = _command(run, options), _sbatch_options(situation, options, num_tasks)
    script = script_text(options.template or TEMPLATE, sbatch, command)
    submissions = Submissions(situation.path)
    # Slurm does not make the folder of its logs.
    submissions.folder.mkdir(parents=True, exist_ok=True)
    situation.write()
    job = queue.submit(script)
    path = submissions.add(
        Submission(
            job=job,
            tasks=num_tasks,
            submitted=datetime.now(UTC).isoformat(timespec="seconds"),
            options=sbatch,
            command=tuple(command),
        ),
        script,
    )
    if num_tasks < options.array:
        click.echo(
            f"--array {options.array} is more than the trials that are left can use: {num_tasks} "
            f"{'driver is' if num_tasks == 1 else 'drivers are'} submitted."
        )
    click.echo(
        f"Submitted job {job}: {num_tasks} {'driver' if num_tasks == 1 else 'drivers'} of "
        f"{study.name}.\n"
        f"  script: {path}\n"
        f"  logs:   {submissions.folder / LOG.replace('%A', job).replace('%a', 'TASK')}\n"
        f"  watch:  {shlex.join(status)} --watch\n"
        f"  cancel: {shlex.join(_cancelling(status))}"
    )
    return 0


def print_script(study: Study, launch: Launch, options: SlurmOptions, run: Sequence[str]) -> int:
    """Print the file that :func:`submit` would submit; return 0. Nothing is written."""
    situation, num_tasks = _checked(study, launch, options)
    sbatch = _sbatch_options(situation, options, max(num_tasks, 1))
    text = script_text(options.template or TEMPLATE, sbatch, _command(run, options))
    click.echo(text, nl=False)
    return 0


def cancel(study: Study, launch: Launch) -> int:
    """Cancel the submissions of ``study`` that are still in the queue; return 0.

    Raises:
        ValueError: Slurm refuses, or this machine has no Slurm.
    """
    submissions = Submissions(survey(study, launch.storage).path).all()
    queued = list(queue.tasks_of(submission.job for submission in submissions))
    if not queued:
        click.echo(f"No submission of {study.name} in {launch.storage} is in Slurm's queue.")
        return 0
    queue.cancel(queued)
    click.echo(
        f"Cancelled {', '.join(queued)}. Drivers that run store a checkpoint of each training."
    )
    return 0


def _checked(study: Study, launch: Launch, options: SlurmOptions) -> tuple[Situation, int]:
    """Check what a driver would check; return the situation and the number of useful tasks."""
    launch.check_addresses()
    if launch.tracking_uri is not None and has_password(launch.tracking_uri):
        raise ValueError(
            f"--tracking-uri {public_uri(launch.tracking_uri)} has a password, and every user can "
            "read the command of a job. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
            "instead: jobs inherit them."
        )
    situation = survey(study, launch.storage)
    assert isinstance(situation, Situation)  # noqa: S101 - searches have no such verb
    situation.check()
    resources = options.resources
    launch = replace(
        launch,
        concurrent=resources.concurrent,
        cpus_per_trial=resources.cpus_per_trial,
        gpus_per_trial=resources.gpus_per_trial,
    )
    if (refusal := power_of(situation, launch, ledger_noise(situation)).refusal) is not None:
        raise ValueError(refusal)
    most_at_once = max(len(missing) for missing in situation.rounds())
    return situation, min(options.array, -(-most_at_once // resources.concurrent))


def _command(run: Sequence[str], options: SlurmOptions) -> list[str]:
    # A forecast would be that of one driver alone, and each driver would time the same steps.
    return [*run, *options.resources.words, "--leave", "--no-probe"]


def _sbatch_options(situation: Situation, options: SlurmOptions, num_tasks: int) -> dict[str, str]:
    study = situation.plan.study
    return {
        "job-name": f"toco-{study.name}",
        "array": f"1-{num_tasks}",
        "cpus-per-task": str(options.resources.cpus_per_task),
        "chdir": str(Path.cwd()),
        "output": str(Submissions(situation.path).folder / LOG),
        **options.named,
        **options.further,
    }


def _cancelling(status: Sequence[str]) -> list[str]:
    return [*("submit" if word == "status" else word for word in status), "--slurm", "--cancel"]
