"""From a study to its report: everything that can be refused is refused before Ray starts."""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sweeps.core.design.study import Study
from sweeps.core.findings.exit_status import INCOMPLETE
from sweeps.core.plan import admission, ray_environment
from sweeps.core.plan.forecast import Forecast, scorecard
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.plan_text import foretell, plan_text, power_of
from sweeps.core.plan.survey import Situation, Task, survey
from sweeps.core.report import StudyReport, write_report
from sweeps.core.run.failures import failure_of
from sweeps.core.run.listener import Watch, carrying_on
from sweeps.core.run.live_page import LivePage
from sweeps.core.run.mlflow_mirror import Mirror, closing_sentence
from sweeps.core.run.obstacle import Obstacle
from sweeps.core.run.progress import Progress
from sweeps.core.run.worker import Spec
from sweeps.core.store.finished import Ending, remember
from sweeps.core.store.leases import Leases, LostLeaseError
from sweeps.core.store.runs import newest_step
from sweeps.core.store.sessions import leave, salvage, session_lease
from sweeps.core.store.study_folder import StudyFolder
from toco.files import is_no_room
from toco.room import NoRoomError, sentence_of, shortage, telling_shortage
from toco.tracking import Tracker
from toco.train.provenance import own_command
from toco.train.reevaluate import reevaluate

if TYPE_CHECKING:
    from sweeps.core.run import ray_tune as runner

_POLL_S = 5.0


def run_study(study: Study, launch: Launch) -> int:
    """Run what is missing of ``study``, write its report and print the table; returns the exit status.

    Returns:
        0 where no claim of the paper is contradicted, 3 where one is, 4 where trials have no result.

    Raises:
        NoRoomError: A disk has no room for the trials.
        ValueError: The study, its data or the launch is not valid, or its seeds cannot answer what it asks.
        OSError: A folder or file cannot be read or written, or there is no cluster at the address.
    """
    address = ray_environment.resolve_address(launch.address)
    uri = launch.tracking
    situation = survey(study, launch.storage)
    folder = StudyFolder(launch.storage / situation.plan.folder_name)
    situation.mark()
    now, later = situation.tasks()
    if not now:
        folder.write_study(situation.plan, situation.keys, situation.inputs, None)
        report = write_report(folder.path)
        _remember(situation, launch, report)
        click.echo(f"All {len(situation.plan.trials)} trials are there.\n\n{report.text}\n\nReport: {report.page}")
        return report.exit_code
    power = power_of(situation, launch)
    if power.refusal is not None:
        raise ValueError(power.refusal)
    foretold = foretell(situation, now + later, launch)
    if (refusal := admission.refusal(foretold, launch)) is not None:
        raise ValueError(refusal)
    folder.write_study(situation.plan, situation.keys, situation.inputs, foretold.to_json())
    click.echo(plan_text(situation, now, later, foretold, power, folder.path))
    with telling_shortage(launch.storage, foretold.trial_bytes):
        return _Driver(situation, folder, launch, address, foretold.trial_bytes).run(uri, foretold)


class _Driver:
    """One process that runs a study, perhaps beside others that run it too."""

    def __init__(
        self, situation: Situation, folder: StudyFolder, launch: Launch, address: str, trial_bytes: int
    ) -> None:
        self._situation = situation
        self._folder = folder
        self._launch = launch
        self._address = address
        self._trial_bytes = trial_bytes
        self._leases = Leases(launch.storage, f"the study {situation.plan.study.name}")
        self._session = situation.runs.sessions / uuid.uuid4().hex[:12]
        self._planned = [identity.key for _, identity in situation.missing()]
        self._inputs = dict(zip(situation.keys, situation.inputs, strict=True))
        self._given_up: set[str] = set()
        # Whose evaluation from a stored training failed.
        self._afresh: set[str] = set()
        self._leased: set[str] = set()
        self._started = time.monotonic()
        self._is_shown = False

    def run(self, uri: str, foretold: Forecast) -> int:
        situation, launch = self._situation, self._launch
        tracker = Tracker(uri, situation.plan.study.name)
        mirror = Mirror(tracker, self._folder, situation)
        progress = self._progress()
        with contextlib.ExitStack() as stack:
            owner = stack.enter_context(self._folder.locked())
            stack.enter_context(self._leases)
            self._leases.acquire([session_lease(self._session)])
            page = LivePage(self._folder) if owner else None
            obstacle = Obstacle(launch.storage, self._trial_bytes)
            watch = Watch(situation, progress, mirror, page, launch.resources, self._leases.check, obstacle)
            outcome = "FAILED"
            try:
                self._run_all(watch, mirror, page)
                outcome = "FINISHED"
            except KeyboardInterrupt:
                outcome = "KILLED"
                raise
            except LostLeaseError:
                # The study goes on elsewhere: its parent run in MLflow has not ended.
                outcome = "RUNNING"
                raise
            finally:
                progress.close()
                if page is not None and self._is_shown:
                    page.close()
                leave(situation.runs, self._session)
                if self._is_shown and outcome == "RUNNING":
                    mirror.drain()
                elif self._is_shown and outcome != "FINISHED":
                    mirror.close((), outcome)
            mirror.drain()
            report = _report(self._folder)
            if report is not None and not situation.missing():
                with carrying_on("The next start of this finished study will take a little longer"):
                    _remember(situation, launch, report)
            mirrored = mirror.close(
                report.files if report else (),
                "FAILED" if situation.missing() else "FINISHED",
                report.note if report else None,
            )
        click.echo(self._closing_text(report, foretold))
        click.echo(closing_sentence(launch, mirror.pages, complete=mirrored))
        return report.exit_code if report else INCOMPLETE

    def _run_all(self, watch: Watch, mirror: Mirror, page: LivePage | None) -> None:
        """Run until the ledger has every trial or this driver has given it up."""
        with contextlib.ExitStack() as ray:
            is_connected = False
            while True:
                now, _ = self._situation.tasks(self._given_up, self._afresh)
                if not now:
                    self._show(mirror, page)
                    return
                mine, others = self._lease(now)
                work = list(self._without_work(mine, watch))
                if work and not is_connected:
                    ray.enter_context(self._connected())
                    is_connected = True
                if work:
                    self._show(mirror, page)
                    self._run(work, watch)
                elif others and not mine:
                    self._show(mirror, page)
                    key, leases = others[0].key, self._leases
                    watch.waiting_for(key, len(others), leases.holder(key), leases.silence_s(key), leases)
                    time.sleep(_POLL_S)

    def _show(self, mirror: Mirror, page: LivePage | None) -> None:
        """Begin to fill MLflow and the page. Not before Ray is there: a study that never began would seem to run."""
        if not self._is_shown:
            self._is_shown = True
            if page is not None:
                page.start()
            mirror.start()

    def _lease(self, tasks: Sequence[Task]) -> tuple[list[Task], list[Task]]:
        """The tasks that this driver may run, and those that another one runs."""
        keys = {task.key for task in tasks}
        # What has ended, or was given up: another driver may be waiting for it.
        self._leases.release(self._leased - keys)
        self._leased = held = self._leases.acquire(keys)
        return [task for task in tasks if task.key in held], [task for task in tasks if task.key not in held]

    def _without_work(self, tasks: Sequence[Task], watch: Watch) -> Iterator[Task]:
        """The tasks that need a worker; the others are brought to their end here.

        These are trials that ended when their driver was lost, and those that a threshold curve answers.
        """
        watch.expect(tasks)
        salvage(self._situation.runs, self._leases, self._session)
        for task in tasks:
            try:
                if watch.settle(task):
                    continue
            except LostLeaseError:
                continue
            except OSError as error:  # a ledger that cannot be written, for this trial at least
                self._raise_without_room(error)
                watch.failed(task.key, failure_of(error, socket.gethostname(), ""))
                self._given_up.add(task.key)
                continue
            if task.source is not None and task.way == "rescore":
                self._rescore(task, task.source, watch)
            else:
                yield task

    def _rescore(self, task: Task, key: str, watch: Watch) -> None:
        """Enter what the evaluations of the trial ``key`` say of ``task``."""
        situation = self._situation
        source, scratch = situation.ledger.run_dir(key), self._session / "rescored" / task.key
        try:
            reevaluate(source, scratch, task.trial.config, "rescore", recipe=situation.plan.study.recipe)
        except Exception as error:  # a damaged file of the source: no reason to end the study
            self._raise_without_room(error)
            watch.failed(task.key, failure_of(error, socket.gethostname(), ""))
            self._afresh.add(task.key)
            return
        watch.snapshot(task.key, scratch)
        watch.ended(task.key)
        # Else another driver has the lease by now, and is waited for.
        if situation.ledger.entry(task.key) is None and self._leases.holds(task.key):
            self._given_up.add(task.key)

    def _raise_without_room(self, error: BaseException) -> None:
        if isinstance(error, OSError) and is_no_room(error):
            raise NoRoomError(sentence_of(self._launch.storage, self._trial_bytes, error)) from error

    def _run(self, tasks: Sequence[Task], watch: Watch) -> None:
        """Run ``tasks`` on Ray.

        Raises:
            NoRoomError: There is no room for them.
            LostLeaseError: This driver was suspended, and another one runs them now.
        """
        from sweeps.core.run import ray_tune as runner

        if (problem := shortage(self._launch.storage, self._trial_bytes)) is not None:
            raise NoRoomError(problem)
        situation = self._situation
        name = situation.plan.study.name
        session = self._session / uuid.uuid4().hex[:8]
        specs = [self._spec(task) for task in tasks]
        failed = runner.run_trials(specs, situation.runs, session, self._resources(), watch, name)
        watch.check()
        evaluated = {task.key for task in tasks if task.source is not None}
        self._afresh |= failed & evaluated
        self._given_up |= failed - evaluated
        # Their run folders could not be written, as the log says.
        ended = {task.key for task in tasks} - failed
        self._given_up |= {key for key in ended if situation.runs.status(key) is None and self._leases.holds(key)}
        # Another driver may have better luck with them.
        self._leases.release(failed - evaluated)

    def _resources(self) -> runner.Resources:
        from sweeps.core.run import ray_tune as runner

        launch = self._launch
        return runner.Resources(launch.concurrent, launch.cpus_per_trial, launch.gpus_per_trial, launch.max_failures)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        ray_environment.prepare(self._address)
        # Only now: Ray reads its environment when it is imported.
        from sweeps.core.run import ray_tune as runner

        with runner.connected(self._address):
            runner.check_resources(self._resources(), may_grow=self._address != "local")
            yield

    def _spec(self, task: Task) -> Spec:
        study, ledger = self._situation.plan.study, self._situation.ledger
        return Spec(
            task.key,
            study.recipe,
            study.train,
            task.trial.config.model_dump(mode="json"),
            None if task.source is None else str(ledger.run_dir(task.source)),
            str(self._prefixes(task)) if task.prefix_shared else None,
            self._inputs[task.key],
            self._launch.world_size,
            self._trial_bytes,
            own_command(),
        )

    def _prefixes(self, task: Task) -> Path:
        """Checkpoints that trainings of the same code, data and versions share."""
        return self._launch.storage / "prefixes" / task.surroundings

    def _progress(self) -> Progress:
        situation = self._situation
        missing = {identity.key for _, identity in situation.missing()}
        steps = {
            identity.key: trial.config.num_steps
            for trial, identity in zip(situation.plan.trials, situation.identities, strict=True)
        }
        progress = Progress(situation.plan.study.name, steps)
        for key in steps:
            if key in missing:
                progress.resumed(key, max(newest_step(situation.ledger.run_dir(key)), 0))
            else:
                progress.ended_before(key, failed=False)
        return progress

    def _closing_text(self, report: StudyReport | None, foretold: Forecast) -> str:
        situation = self._situation
        lines = []
        for trial, identity in situation.missing():
            failures = situation.ledger.failures(identity.key)
            reason = failures[-1].reason if failures else "unknown"
            lines.append(
                f"{trial.name} failed {len(failures)} times, at last: {reason}. The report has its trace; "
                "the same command tries again."
            )
        if report is not None:
            lines += [f"\n{report.text}\n", f"Report: {report.page}"]
        entries = [entry for key in self._planned if (entry := situation.ledger.entry(key)) is not None]
        lines += scorecard(foretold.to_json(), entries, time.monotonic() - self._started)
        return "\n".join(lines)


def _remember(situation: Situation, launch: Launch, report: StudyReport) -> None:
    study, inputs = situation.plan.study, situation.inputs
    ending = Ending(report.text, report.page, report.exit_code)
    remember(study, launch.storage, situation.keys, inputs, ending, report.files)


def _report(folder: StudyFolder) -> StudyReport | None:
    try:
        return write_report(folder.path)
    except Exception as error:  # the trainings are done and kept; the report can be written again
        warnings.warn(f"The report could not be written: {error!r}", stacklevel=2)
        return None
