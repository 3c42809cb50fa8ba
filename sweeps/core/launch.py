"""From a study to its report: everything that can be refused is refused before Ray starts."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import click

from sweeps.core import ray_environment
from sweeps.core.inputs import training_inputs
from sweeps.core.mirror import Mirror
from sweeps.core.progress import Progress
from sweeps.core.report import StudyReport, write_report
from sweeps.core.study import Plan, Study
from sweeps.core.study_folder import StudyFolder, newest_step
from sweeps.core.watch import Watch
from toco.tracking import Tracker, client_uri
from toco.tracking.mlflow_store import public_uri


@dataclass(frozen=True, slots=True)
class Launch:
    """Where and how a study runs; none of it affects results.

    Attributes:
        storage: Folder of studies; every node of a cluster must see it under this path.
        tracking_uri: MLflow store; a database in ``storage`` unless given.
        address: Ray cluster; see ``ray_environment.resolve_address``.
        concurrent: Trials at once.
        max_failures: Restarts of one trial; -1 for any number.
    """

    storage: Path
    tracking_uri: str | None = None
    address: str | None = None
    concurrent: int = 2
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    max_failures: int = 3


def default_storage() -> Path:
    """``results`` in the current folder. A Ray job's is thrown away with the job, so there it is ``~/toco-results``."""
    return Path.home() / "toco-results" if _in_ray_job() else Path("results")


def run_study(study: Study, launch: Launch) -> bool:
    """Run what is left of ``study``, write its report and print the table; says whether every training finished.

    Raises:
        ValueError: The study, its data or the launch is not valid, or the folder holds results of other data.
        OSError: A folder or file cannot be read or written, or there is no cluster at the address.
    """
    plan = study.resolve()
    address = ray_environment.resolve_address(launch.address)
    if _in_ray_job() and not launch.storage.expanduser().is_absolute():
        raise ValueError(
            f"A Ray job runs in a copy of the working folder that is thrown away, and --storage {launch.storage} would "
            "be with it: give an absolute path that every node sees."
        )
    storage = launch.storage.expanduser().resolve()
    uri = client_uri(launch.tracking_uri or f"sqlite:///{storage / 'mlflow.db'}")
    folder = StudyFolder(storage / plan.folder_name)
    with folder.opened(plan, training_inputs(plan)):
        progress = _progress(plan, folder)
        click.echo(_plan_text(plan, folder))
        mirror = Mirror(Tracker(uri, study.name), folder, plan)
        if all(folder.status(trial.name) for trial in plan.trials):
            mirror.start()
            complete = True
        else:
            complete = _run(plan, folder, launch, address, Watch(folder, progress, mirror), mirror)
        progress.close()
        finished = all(folder.status(trial.name) == "finished" for trial in plan.trials)
        report = _report(folder) if complete else None
        mirrored = mirror.close(
            report.files if report else (), "FINISHED" if finished else "FAILED" if complete else "KILLED"
        )
    click.echo(_closing_text(plan, folder, report, complete=complete))
    if mirrored:
        click.echo(f"MLflow: experiment {study.name} in {public_uri(uri)}. {_how_to_open(uri)}")
    return finished


def _run(plan: Plan, folder: StudyFolder, launch: Launch, address: str, watch: Watch, mirror: Mirror) -> bool:
    ray_environment.prepare(address)
    # Only now: Ray reads its environment when it is imported.
    from sweeps.core import runner

    resources = runner.Resources(launch.concurrent, launch.cpus_per_trial, launch.gpus_per_trial, launch.max_failures)
    with runner.connected(address):
        runner.check_resources(resources, may_grow=address != "local")
        # Not before Ray is connected: a study that never began would leave a run for ever RUNNING.
        mirror.start()
        try:
            return runner.run_trials(plan, folder, resources, watch)
        except BaseException:
            mirror.close((), "FAILED")
            raise


def _how_to_open(uri: str) -> str:
    if uri.startswith("http"):
        return "Open that address in a browser."
    return (
        "To open it: make mlflow, or mlflow server --host 127.0.0.1 --backend-store-uri "
        f"{uri}, then http://127.0.0.1:5000"
    )


def _in_ray_job() -> bool:
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _progress(plan: Plan, folder: StudyFolder) -> Progress:
    progress = Progress(plan.study.name, {trial.name: trial.config.num_steps for trial in plan.trials})
    for trial in plan.trials:
        status = folder.status(trial.name)
        if status is None:
            progress.resumed(trial.name, max(newest_step(folder.run_dir(trial.name)), 0))
        else:
            progress.ended_before(trial.name, failed=status != "finished")
    return progress


def _plan_text(plan: Plan, folder: StudyFolder) -> str:
    left = [trial.name for trial in plan.trials if folder.status(trial.name) is None]
    ended = len(plan.trials) - len(left)
    begun = sum(newest_step(folder.run_dir(name)) >= 0 for name in left)
    counts = f"{len(plan.cells)} rows x {len(plan.study.seeds)} seeds = {len(plan.trials)} trainings"
    done = f", of which {ended} have ended and {begun} go on from a checkpoint" if ended or begun else ""
    return f"{plan.study.title}\n{counts}{done}, in {folder.path}"


def _report(folder: StudyFolder) -> StudyReport | None:
    try:
        return write_report(folder.path)
    except Exception as error:  # the trainings are done and kept; the report can be written again
        warnings.warn(f"The report could not be written: {error!r}", stacklevel=2)
        return None


def _closing_text(plan: Plan, folder: StudyFolder, report: StudyReport | None, *, complete: bool) -> str:
    if not complete:
        return "Stopped. The same command goes on from here."
    lines = []
    for trial in plan.trials:
        status = folder.status(trial.name)
        if status is None:
            lines.append(
                f"{trial.name} failed, see {folder.tune / trial.name / 'error.txt'}; the same command tries again."
            )
        elif status != "finished":
            lines.append(f"{trial.name} {status}, see {folder.run_dir(trial.name) / 'result.json'}.")
    if report is not None:
        lines += [f"\n{report.text}\n", f"Report: {report.page}"]
    return "\n".join(lines)
