"""Runs a study or a search to its report.

Three roles and a loop: a proposer decides what is computed next from the results so far, a backend runs it on workers,
and a listener stores what comes back. The driver between them holds the leases, so that no trial is computed twice.
Everything that can be refused is refused before Ray starts.
"""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import click

from sweeps.core.design.search_space import SearchStudy
from sweeps.core.design.study import Study
from sweeps.core.findings.exit_status import INCOMPLETE
from sweeps.core.plan import ray_environment
from sweeps.core.plan.forecast import Forecast, scorecard
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.plan_text import look_ahead
from sweeps.core.plan.survey import SearchSituation, Situation, Task, survey
from sweeps.core.report import WrittenReport
from sweeps.core.run.failures import failure_of
from sweeps.core.run.listener import Listener, carrying_on
from sweeps.core.run.live_page import LivePage, write_report_of
from sweeps.core.run.mlflow_mirror import Mirror, closing_sentence
from sweeps.core.run.obstacle import Obstacle
from sweeps.core.run.progress import Progress
from sweeps.core.run.search_proposer import SearchProposer
from sweeps.core.run.study_proposer import StudyProposer
from sweeps.core.run.worker import Spec
from sweeps.core.store.finished import remember
from sweeps.core.store.leases import Leases, LostLeaseError
from sweeps.core.store.ledger_entry import Origin
from sweeps.core.store.runs import Runs, leave, salvage, session_lease
from sweeps.core.store.study_folder import StudyFolder
from toco.files import is_no_room
from toco.room import NoRoomError, shortage, telling_shortage
from toco.tracking import Tracker
from toco.train.provenance import own_command
from toco.train.reevaluate import reevaluate

_POLL_S = 5.0
"""Seconds between looks at the trials of other drivers."""


class Proposer(Protocol):
    """Decides what is computed next. It is asked again after each end, so that it may decide by the results so far."""

    @property
    def trials(self) -> Mapping[str, Task]:
        """All trials that are known, by key; more may come."""

    def propose(self, *, is_idle: bool) -> Collection[Task]:
        """Trials that can start now and were not proposed before.

        Args:
            is_idle: Whether a worker waits for a trial. Who chooses by the results so far chooses then, not before.
        """

    @property
    def is_done(self) -> bool:
        """Whether nothing more will be proposed unless a trial ends."""

    def may_start(self, task: Task) -> bool:
        """Judge a trial, whose lease the driver holds now, by what its run folder has; says whether it is to run."""

    def goes_on(self, key: str, row: Mapping[str, Any]) -> bool:
        """Whether a running trial goes on after what it has reported."""

    def ended(self, key: str) -> bool:
        """A trial does not run any more; says whether it has an end: a result, or it was to be stopped."""

    def failed(self, key: str) -> None:
        """A trial has failed as often as it may."""

    def give_up(self, key: str) -> None:
        """What became of a trial cannot be stored."""

    def unfinished(self) -> list[Task]:
        """Trials without an end."""

    def progress(self) -> Progress:
        """The progress line of all trials, as they stand."""


class Backend(Protocol):
    """Runs trials on workers."""

    def run(self, proposer: Any, listener: Listener, runs: Runs, session: Path, name: str) -> None:  # noqa: ANN401
        """Run what ``proposer`` asks for, until it has no more.

        Args:
            proposer: Has ``next``, ``is_done`` and ``goes_on`` of :class:`Driver`.
            listener: Told of everything.
            runs: Where the run folders are.
            session: A folder of this call alone, seen by all nodes.
            name: Of the study.

        Raises:
            NoRoomError: The storage, or every node, is full.
            LostLeaseError: Another driver runs the trials now.
            KeyboardInterrupt: Somebody has stopped the driver.
        """


Connect = Callable[[Launch], contextlib.AbstractContextManager[Backend]]
"""Connects to the workers of a launch, for the time of a context."""


@contextlib.contextmanager
def connect_to_ray(launch: Launch) -> Iterator[Backend]:
    """Connect to the Ray cluster of ``launch``, or start one on this machine.

    Raises:
        ConnectionError: There is no cluster at the address, or Ray did not start.
        ValueError: No node of it can hold a trial.
    """
    address = ray_environment.resolve_address(launch.address)
    ray_environment.prepare(address)
    # Only now: Ray reads its environment when it is imported.
    from sweeps.core.run import ray_tune

    resources = ray_tune.Resources(launch.concurrent, launch.cpus_per_trial, launch.gpus_per_trial, launch.max_failures)
    with ray_tune.connected(address):
        ray_tune.check_resources(resources, may_grow=address != "local")
        yield ray_tune.RayTune(resources)


def run_study(study: Study | SearchStudy, launch: Launch, connect: Connect = connect_to_ray) -> int:
    """Run what is missing of a study or a search, write its report and print it.

    Args:
        study: What is asked.
        launch: Where and how it runs.
        connect: Connects to the workers, once there is something for them.

    Returns:
        The exit status: 0 where no claim of the paper is contradicted, 3 where one is, 4 where trials have no result.

    Raises:
        NoRoomError: A disk has no room for the trials.
        ValueError: The study, its data or the launch is not valid; its seeds cannot answer what it asks; or another
            driver runs this search.
        OSError: A folder or file cannot be read or written, or there is no cluster at the address.
        LostLeaseError: This driver was suspended, and another one runs the trials now.
    """
    ray_environment.resolve_address(launch.address)
    uri = launch.tracking
    situation = survey(study, launch.storage)
    situation.check()
    with Leases(launch.storage, f"the {situation.kind} {study.name}") as leases:
        situation.claim(leases)
        outlook = look_ahead(situation, launch, refuse=True)
        if not outlook.num_left:
            situation.write()
            report = write_report_of(situation, running=False)
            remember_report(situation, launch, report)
            click.echo(f"All {outlook.num_trials} trials have ended.\n\n{report.text}\n\nReport: {report.page}")
            return report.exit_code
        situation.write(outlook.forecast.to_json())
        click.echo(outlook.text)
        with (
            telling_shortage(launch.storage, outlook.forecast.trial_bytes),
            StudyFolder(situation.path).locked() as is_shown,
        ):
            tracker = Tracker(uri, study.name)
            driver = Driver(situation, launch, leases, tracker, outlook.forecast, is_shown=is_shown)
            return driver.run(connect)


class Driver:
    """One process that runs a study or a search, perhaps beside others that run it too.

    Args:
        situation: The study or search, whose record is written.
        launch: Where and how it runs.
        leases: The driver's; they hold that of the search.
        tracker: The MLflow store.
        forecast: What the trials are predicted to cost.
        is_shown: Whether this driver keeps the page up to date.
    """

    def __init__(
        self,
        situation: Situation | SearchSituation,
        launch: Launch,
        leases: Leases,
        tracker: Tracker,
        forecast: Forecast,
        *,
        is_shown: bool,
    ) -> None:
        self._situation = situation
        self._launch = launch
        self._leases = leases
        self._forecast = forecast
        self._runs = situation.runs
        self._started = time.monotonic()
        self._session = self._runs.sessions / uuid.uuid4().hex[:12]
        self._proposer: Proposer = (
            StudyProposer(situation) if isinstance(situation, Situation) else SearchProposer(situation, leases)
        )
        self._progress = self._proposer.progress()
        self._mirror = Mirror(tracker, situation, self._proposer.trials)
        self._page = LivePage(situation) if is_shown else None
        self._obstacle = Obstacle(launch.storage, forecast.trial_bytes)
        # Trials by key: those that this driver has, of which some wait for a worker, and those that others have.
        self._tasks: dict[str, list[Task]] = {}
        self._queue: deque[Task] = deque()
        self._elsewhere: dict[str, list[Task]] = {}
        self._looked_elsewhere = float("-inf")
        self._proposed: dict[str, None] = {}
        self._first: Spec | None = None
        self._has_begun = False
        self._error: ValueError | OSError | LostLeaseError | None = None
        study = situation.plan.study
        self._listener = Listener(
            self._tasks,
            runs=self._runs,
            origin=Origin(study.name, study.recipe, search=situation.kind == "search"),
            resources=launch.resources,
            leases=leases,
            progress=self._progress,
            mirror=self._mirror,
            page=self._page,
            obstacle=self._obstacle,
            let_go=self._let_go,
        )

    def run(self, connect: Connect) -> int:
        """Run to the end; returns the exit status. Raises as :func:`run_study`."""
        self._leases.acquire([session_lease(self._session)])
        outcome = "FAILED"
        try:
            self._run_all(connect)
            outcome = "FINISHED"
        except KeyboardInterrupt:
            outcome = "KILLED"
            raise
        except LostLeaseError:
            # The study goes on elsewhere: its parent run in MLflow has not ended.
            outcome = "RUNNING"
            raise
        finally:
            self._progress.close()
            if self._page is not None and self._has_begun:
                self._page.close()
            leave(self._runs, self._session)
            if self._has_begun and outcome == "RUNNING":
                self._mirror.drain()
            elif self._has_begun and outcome != "FINISHED":
                self._mirror.close((), outcome)
        return self._close()

    # What the backend asks.

    @property
    def is_done(self) -> bool:
        """Whether there is nothing more to begin."""
        if self._error is not None:
            return True
        return not (self._tasks or self._elsewhere) and self._proposer.is_done

    def next(self) -> Spec | None:
        """The next trial for a worker; ``None`` where there is none now. Others are brought to their end here."""
        first, self._first = self._first, None
        if first is not None or self._error is not None:
            return first
        try:
            with self._obstacle.noted():
                spec = self._next()
        except (ValueError, OSError, LostLeaseError) as error:
            # Raised again at the end: Ray would bury it in a trace of its own.
            self._error = error
            return None
        if spec is None and not self._tasks and self._elsewhere:
            self._say_waiting()
        return spec

    def goes_on(self, key: str, row: Mapping[str, Any]) -> bool:
        """Whether a trial goes on after what it has reported."""
        with carrying_on(f"The rung of {key} could not be judged, so it goes on"):
            if not self._proposer.goes_on(key, row):
                self._listener.stopped(key, int(row["step"]))
                return False
        return True

    # The loop.

    def _run_all(self, connect: Connect) -> None:
        """Run until every trial has ended, or this driver has given it up."""
        while (spec := self.next()) is None and not self.is_done:
            self._begin()
            time.sleep(_POLL_S)
            self._looked_elsewhere = float("-inf")
        if spec is not None:
            self._first = spec
            if (problem := shortage(self._launch.storage, self._forecast.trial_bytes)) is not None:
                raise NoRoomError(problem)
            with connect(self._launch) as backend:
                self._begin()
                session, name = self._session / uuid.uuid4().hex[:8], self._situation.plan.study.name
                backend.run(self, self._listener, self._runs, session, name)
        self._obstacle.check()
        if self._error is not None:
            raise self._error
        self._begin()

    def _begin(self) -> None:
        """Begin to fill MLflow and the page. Otherwise MLflow shows a study as RUNNING when Ray failed to start."""
        if not self._has_begun:
            self._has_begun = True
            if self._page is not None:
                self._page.start()
            self._mirror.start()

    def _next(self) -> Spec | None:
        if others := self._look_elsewhere():
            self._take(others)
        while True:
            while tasks := self._proposer.propose(is_idle=not self._queue):
                self._take(tasks)
            if not self._queue:
                return None
            task = self._queue.popleft()
            if self._proposer.may_start(task):
                return self._spec(task)
            self._listener.ended(task.key)

    def _look_elsewhere(self) -> list[Task]:
        """The trials that other drivers have, every few seconds: they may have ended, or their driver may be gone."""
        if not self._elsewhere or time.monotonic() - self._looked_elsewhere < _POLL_S:
            return []
        self._looked_elsewhere = time.monotonic()
        tasks = [task for tasks in self._elsewhere.values() for task in tasks]
        self._elsewhere.clear()
        return tasks

    def _take(self, tasks: Collection[Task]) -> None:
        """Lease ``tasks``, bring those to their end that need no worker, and queue the others, evaluations first."""
        self._proposed |= {task.key: None for task in tasks}
        keys = {task.key for task in tasks} - self._tasks.keys() - self._elsewhere.keys()
        finished = self._situation.ledger.finished_keys(keys)
        held = self._leases.acquire(keys - finished)
        if held:
            # What a driver that is gone had received of them, or of other trials.
            salvage(self._runs, self._leases, self._session)
        evaluations: list[Task] = []
        for task in tasks:
            self._listener.expect(task)
            if task.key in self._tasks:
                # Equal values that were proposed twice are one training.
                self._tasks[task.key].append(task)
            elif task.key not in held | finished:
                self._set_aside(task)
            else:
                self._tasks[task.key] = [task]
                if self._needs_worker(task, is_finished=task.key in finished):
                    (self._queue if task.source is None else evaluations).append(task)
        self._queue.extendleft(reversed(evaluations))

    def _set_aside(self, *tasks: Task) -> None:
        """Wait for another driver, which has the leases of ``tasks``."""
        if not self._elsewhere:
            self._looked_elsewhere = time.monotonic()
        for task in tasks:
            waiting = self._elsewhere.setdefault(task.key, [])
            if task.name not in [other.name for other in waiting]:
                waiting.append(task)

    def _needs_worker(self, task: Task, *, is_finished: bool) -> bool:
        """Whether a worker has to run ``task``; otherwise it is brought to its end.

        That are trials that ended when their driver was lost, and those that a stored threshold curve answers.
        """
        try:
            if is_finished or self._listener.settle(task):
                self._listener.ended(task.key)
                return False
        except LostLeaseError:
            self._set_aside(*self._tasks.pop(task.key))
            return False
        except OSError as error:  # a ledger that cannot be written, for this trial at least
            self._fail_here(task, error)
            return False
        if task.source is None or task.way != "rescore":
            return True
        self._rescore(task, self._situation.ledger.run_dir(task.source))
        return False

    def _rescore(self, task: Task, source: Path) -> None:
        """Enter what the evaluations in the run folder ``source`` say of ``task``."""
        scratch = self._session / "rescored" / task.key
        try:
            reevaluate(source, scratch, task.config, "rescore", recipe=self._situation.plan.study.recipe)
        except Exception as error:  # a damaged file of the source: no reason to end the study
            self._fail_here(task, error)
            return
        try:
            self._listener.publish(task.key, scratch)
        except OSError as error:
            if is_no_room(error):
                raise
            warnings.warn(f"The run folder of {task.name} could not be written: {error!r}", stacklevel=2)
        except LostLeaseError:
            pass  # it is set aside when it is let go
        self._listener.ended(task.key)

    def _fail_here(self, task: Task, error: Exception) -> None:
        """A trial failed in this process."""
        if isinstance(error, OSError) and is_no_room(error):
            raise error
        self._listener.failed(task.key, failure_of(error, socket.gethostname(), ""))

    def _let_go(self, key: str, failed: bool) -> None:
        """A trial does not run here any more."""
        tasks = self._tasks.pop(key)
        has_end = False
        if failed:
            self._proposer.failed(key)
        else:
            has_end = self._proposer.ended(key)
            if not has_end and not self._leases.holds(key):
                self._set_aside(*tasks)
                return
            if not has_end:
                # Its run folder could not be written, as the log says.
                self._proposer.give_up(key)
        # Another driver may be waiting for it, or have better luck with it.
        self._leases.release([key])
        for task in tasks:
            self._listener.closed(task, failed=not has_end)

    def _spec(self, task: Task) -> Spec:
        situation, launch = self._situation, self._launch
        study, storage = situation.plan.study, situation.ledger.storage
        return Spec(
            task.key,
            study.recipe,
            study.train,
            task.config.model_dump(mode="json"),
            None if task.source is None else str(situation.ledger.run_dir(task.source)),
            # Trainings share checkpoints with those of the same code, data and versions.
            str(storage / "prefixes" / task.surroundings) if task.prefix_shared else None,
            task.inputs,
            launch.world_size,
            self._forecast.trial_bytes,
            own_command(),
        )

    def _say_waiting(self) -> None:
        key, (task, *_) = next(iter(self._elsewhere.items()))
        number = sum(map(len, self._elsewhere.values()))
        self._listener.waiting_for(task, number, self._leases.holder(key), self._leases.silence_s(key))

    # The end.

    def _close(self) -> int:
        """Write and send the last report, and print it; returns the exit status."""
        self._mirror.drain()
        unfinished = self._proposer.unfinished()
        report = self._write_report()
        if report is not None and not unfinished:
            with carrying_on("The next start of this finished study will take a little longer"):
                remember_report(self._situation, self._launch, report)
        is_sent = self._mirror.close(
            report.files if report else (), "FAILED" if unfinished else "FINISHED", report.note if report else None
        )
        click.echo(self._closing_text(unfinished, report))
        click.echo(closing_sentence(self._launch, self._mirror.pages, complete=is_sent))
        return INCOMPLETE if report is None or unfinished else report.exit_code

    def _write_report(self) -> WrittenReport | None:
        try:
            return write_report_of(self._situation, running=False)
        except Exception as error:  # the trainings are done and kept; the report can be written again
            warnings.warn(f"The report could not be written: {error!r}", stacklevel=2)
            return None

    def _closing_text(self, unfinished: Sequence[Task], report: WrittenReport | None) -> str:
        lines = []
        for task in unfinished:
            failures = self._situation.ledger.failures(task.key)
            reason = failures[-1].reason if failures else "unknown"
            lines.append(
                f"{task.name} failed {len(failures)} times, at last: {reason}. The ledger has its trace; "
                "the same command tries again."
            )
        if report is not None:
            lines += [f"\n{report.text}\n", f"Report: {report.page}"]
        entries = [entry for key in self._proposed if (entry := self._situation.ledger.entry(key)) is not None]
        lines += scorecard(self._forecast.to_json(), entries, time.monotonic() - self._started)
        return "\n".join(lines)


def remember_report(situation: Situation | SearchSituation, launch: Launch, report: WrittenReport) -> None:
    """Keep how a finished study ended, for its next start; a search is looked at anew each time."""
    if isinstance(situation, Situation):
        remember(
            situation.plan.study,
            launch.storage,
            situation.keys,
            situation.inputs,
            text=report.text,
            exit_code=report.exit_code,
            page=report.page,
            files=report.files,
        )
