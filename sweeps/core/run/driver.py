"""The loop of a study or a search: a proposer decides, a backend runs, a listener stores.

The driver holds the leases, so that no trial is computed twice. It leases a trial when a worker is
free, because another driver of the same study can take the trials that wait here. Only the first
trial is leased earlier: the workers are started for it.

The way of a trial: ``propose`` of the proposer returns it, ``Driver._take`` leases it, and
``Driver.next`` hands it to the backend. The backend sends its events to the listener, which stores
snapshots. At the end of the trial's run the listener calls ``Driver._let_go``, which tells the
proposer and releases the lease. Driver and listener share one mapping, the leased trials by key:
the driver changes it, the listener only reads it.
"""

from __future__ import annotations

import socket
import time
import uuid
import warnings
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from sweeps.core.findings.exit_status import CLEAN, INCOMPLETE
from sweeps.core.plan.budget import Budget
from sweeps.core.plan.forecast import scorecard
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import SearchSituation, Situation, Task
from sweeps.core.report import WrittenReport
from sweeps.core.run.failures import failure_of
from sweeps.core.run.listener import Listener, errors_as_warnings
from sweeps.core.run.live_page import LivePage, remember_report, write_report_of
from sweeps.core.run.mlflow_mirror import Mirror, closing_sentence
from sweeps.core.run.roles import Connect, Proposer
from sweeps.core.run.search_proposer import SearchProposer
from sweeps.core.run.study_proposer import StudyProposer
from sweeps.core.run.worker import Spec
from sweeps.core.store.budget_record import BudgetStop
from sweeps.core.store.forecast_record import Forecast
from sweeps.core.store.leases import Leases, LostLeaseError
from sweeps.core.store.ledger_entry import Origin
from sweeps.core.store.runs import leave, recover, session_lease
from sweeps.core.store.study_folder import StudyFolder
from toco.files import is_no_room
from toco.room import NoRoomError, shortage
from toco.tracking import Tracker, database_of
from toco.train.provenance import own_command
from toco.train.reevaluate import reevaluate

_POLL_S = 5.0
"""Seconds between looks at the trials of other drivers: trials take minutes, a look reads files."""
_SLICE_S = 1.0
"""Seconds for trials that need no worker, before the backend handles its events again.

Results and failures of running trials wait at most this long, plus the time of one such trial.
"""


class Driver:
    """A process that runs a study or a search, alone or together with drivers elsewhere.

    Args:
        situation: The study or search, whose record is written.
        launch: Where and how the trials run.
        leases: The leases of this driver. They hold the lease of the search already.
        tracker: The MLflow store.
        forecast: The predicted cost of the trials.
        is_shown: Whether this driver updates the report page while it runs, and may write to a
            database file of MLflow.
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
        # The roles around this driver.
        self._proposer: Proposer = (
            StudyProposer(situation, ahead=launch.ahead, budget=Budget.of(launch, forecast))
            if isinstance(situation, Situation)
            else SearchProposer(situation, leases)
        )
        self._progress = self._proposer.progress()
        self._mirror = Mirror(
            tracker,
            situation,
            self._proposer.trials,
            is_writer=is_shown or database_of(launch.tracking) is None,
        )
        self._page = LivePage(situation) if is_shown else None
        # Three states of a proposed trial: not leased; leased by this driver, by key (several
        # trials may be one training); leased by another driver, by key and name.
        self._ready: deque[Task] = deque()
        self._tasks: dict[str, list[Task]] = {}
        self._elsewhere: dict[tuple[str, str], Task] = {}
        self._looked_elsewhere = float("-inf")
        self._proposed: dict[str, None] = {}
        # A trial that was leased before the backend existed; ``next`` returns it first.
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
            trial_bytes=forecast.trial_bytes,
            let_go=self._let_go,
        )

    def run(self, connect: Connect) -> int:
        """Run to the end; return the exit status. Raises the errors of :func:`run_study`."""
        self._leases.acquire([session_lease(self._session)])
        outcome = "FAILED"
        try:
            self._run_all(connect)
            # Other drivers may run the rest.
            outcome = "RUNNING" if self._elsewhere else "FINISHED"
        except KeyboardInterrupt:
            outcome = "KILLED"
            raise
        except LostLeaseError:
            # Another driver continues the study, so its parent run in MLflow has not ended.
            outcome = "RUNNING"
            raise
        finally:
            # MLflow last: it may be slow. A second Ctrl-C meanwhile leaves the storage in order.
            self._progress.close()
            if self._page is not None and self._has_begun:
                self._page.close()
            leave(self._runs, self._session)
            if self._has_begun and outcome == "RUNNING":
                self._mirror.drain()
            elif self._has_begun and outcome != "FINISHED":
                self._mirror.close((), outcome)
        return self._leave() if self._elsewhere else self._close()

    # Questions of the backend.

    @property
    def is_done(self) -> bool:
        """Whether all trials have ended, or an error ends the run."""
        if self._error is not None:
            return True
        if self._ready or self._tasks or not self._proposer.is_done:
            return False
        return not self._elsewhere or self._may_leave

    @property
    def _may_leave(self) -> bool:
        """Whether this driver is not needed: living drivers run all trials, and none can follow."""
        return (
            self._launch.leave
            and self._proposer.is_at_last_look
            and all(self._leases.has_shown_life(key) for key, _ in self._elsewhere)
        )

    def next(self) -> Spec | None:
        """Return the next trial for a worker, or ``None`` where none is ready.

        Trials that need no worker are completed during this call.
        """
        first, self._first = self._first, None
        if first is not None or self._error is not None:
            return first
        try:
            with self._listener.remember_obstacle():
                spec = self._next()
                if spec is None and not (self._ready or self._tasks) and self._elsewhere:
                    self._listener.waiting_for(
                        next(iter(self._elsewhere.values())), len(self._elsewhere)
                    )
        except (ValueError, OSError, LostLeaseError) as error:
            # Raised again at the end of the run. Raised here, Ray would wrap it in its own
            # traceback.
            self._error = error
            return None
        return spec

    def goes_on(self, key: str, row: Mapping[str, Any]) -> bool:
        """Return whether a trial continues after its last report."""
        with errors_as_warnings(f"The rung of {key} could not be judged, so it goes on"):
            if not self._proposer.goes_on(key, row):
                self._listener.stopped(key, int(row["step"]))
                return False
        return True

    # The loop.

    def _run_all(self, connect: Connect) -> None:
        """Run until every trial has ended, here or under another driver."""
        # Before Ray is started: complete the trials that need no worker, and wait for other
        # drivers. A study whose trials all have results never starts Ray, which takes seconds. The
        # loop ends with the first trial that needs a worker, or without one.
        while (spec := self.next()) is None and not self.is_done:
            self._begin()
            if not self._ready:
                time.sleep(_POLL_S)
                self._looked_elsewhere = float("-inf")
        if spec is not None:
            self._first = spec
            if (problem := shortage(self._launch.storage, self._forecast.trial_bytes)) is not None:
                raise NoRoomError(problem)
            with connect(self._launch) as backend:
                self._begin()
                session, name = (
                    self._session / uuid.uuid4().hex[:8],
                    self._situation.plan.study.name,
                )
                backend.run(self, self._listener, self._runs, session, name)
        self._listener.check()
        if self._error is not None:
            raise self._error
        self._begin()

    def _begin(self) -> None:
        """Start to fill MLflow and the page, once the workers have started or none is needed yet.

        A study whose first trial needs workers that cannot be started leaves nothing in MLflow.
        """
        if not self._has_begun:
            self._has_begun = True
            if self._page is not None:
                self._page.start()
            self._mirror.start()

    def _next(self) -> Spec | None:
        began = time.monotonic()
        if self._elsewhere and began - self._looked_elsewhere >= _POLL_S:
            # These trials may have ended since, or their driver may have been lost.
            self._looked_elsewhere = began
            self._ready.extendleft(self._elsewhere.values())
            self._elsewhere.clear()
        while time.monotonic() - began < _SLICE_S:
            self._add(self._proposer.propose(is_idle=not self._ready))
            self._tell_news()
            if not self._ready:
                return None
            task = self._ready.popleft()
            if not self._take(task):
                continue
            if self._proposer.may_start(task):
                return self._spec(task)
            self._listener.ended(task.key)
        return None

    def _add(self, tasks: Collection[Task]) -> None:
        """Queue the proposed trials, evaluations first: they are short, and a row ends sooner."""
        self._proposed |= {task.key: None for task in tasks}
        for task in tasks:
            self._progress.expect(task.name, task.config.num_steps)
        self._ready.extendleft(task for task in reversed([*tasks]) if task.source is not None)
        self._ready.extend(task for task in tasks if task.source is None)

    def _tell_news(self) -> None:
        """Print what was decided, and send it to MLflow."""
        with errors_as_warnings("What was decided could not be told"):
            news = self._proposer.news()
            for line in news:
                self._listener.say(line)
            if news:
                self._mirror.decided()

    def _take(self, task: Task) -> bool:
        """Lease ``task``; return whether a worker has to run it.

        If not, it joined a training that runs here, was completed here, failed here, or another
        driver leases it. No worker is needed for a trial that ended when its driver was lost, nor
        for one whose result follows from stored counts.
        """
        # Join a training that already runs here.
        if task.key in self._tasks:
            # Two proposals with equal values are one training.
            self._tasks[task.key].append(task)
            return False
        # Lease the trial, unless another driver holds it, and recover what a lost driver left.
        is_finished = bool(self._situation.ledger.finished_keys([task.key]))
        if is_finished:
            # Another driver ran it, which may have no right to write to MLflow.
            self._mirror.changed(task.key)
        else:
            if not self._leases.acquire([task.key]):
                self._set_aside(task)
                return False
            # A lost driver may have received snapshots of this trial, and of others: publish them.
            recover(self._runs, self._leases, self._session)
        # Enter the trial into the ledger if its run folder says that it has ended.
        self._tasks[task.key] = [task]
        try:
            is_finished = is_finished or self._listener.settle(task)
        except LostLeaseError:
            self._set_aside(*self._tasks.pop(task.key))
            return False
        except OSError as error:  # a ledger that cannot be written, for this trial at least
            self._fail_here(task, error)
            return False
        # End a trial with a result; compute a result that follows from a stored one.
        if is_finished:
            self._listener.ended(task.key)
            return False
        if task.source is not None and task.way == "rescore":
            self._rescore(task, self._situation.ledger.run_dir(task.source))
            return False
        return True

    def _set_aside(self, *tasks: Task) -> None:
        """Note that another driver holds the leases of ``tasks``; they are tried again later."""
        if not self._elsewhere:
            self._looked_elsewhere = time.monotonic()
        self._elsewhere |= {(task.key, task.name): task for task in tasks}

    def _rescore(self, task: Task, source: Path) -> None:
        """Compute the result of ``task`` from the evaluations in the run folder ``source``."""
        scratch = self._session / "rescored" / task.key
        try:
            reevaluate(
                source, scratch, task.config, "rescore", recipe=self._situation.plan.study.recipe
            )
        except Exception as error:  # a damaged file of the source: no reason to end the study
            self._fail_here(task, error)
            return
        try:
            self._listener.publish(task.key, scratch)
        except OSError as error:
            if is_no_room(error):
                raise
            warnings.warn(
                f"The run folder of {task.name} could not be written: {error!r}", stacklevel=2
            )
        except LostLeaseError:
            pass  # it is set aside when it is let go
        self._listener.ended(task.key)

    def _fail_here(self, task: Task, error: Exception) -> None:
        """Record the failure of a trial in this process."""
        if isinstance(error, OSError) and is_no_room(error):
            raise error
        self._listener.failed(task.key, failure_of(error, socket.gethostname(), ""))

    def _let_go(self, key: str, failed: bool) -> None:
        """Handle the end of a trial's run in this driver.

        The trial is released, or set aside until its new driver has finished it.
        """
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
                # Its run folder could not be written; the log has the error.
                self._proposer.give_up(key)
        # Another driver may wait for this trial, or may succeed where this one failed.
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
            # Trainings with the same code, data, weights and versions share a folder of snapshots.
            str(storage / "prefixes" / task.identity.surroundings) if task.prefix_shared else None,
            task.inputs,
            launch.world_size,
            self._forecast.trial_bytes,
            own_command(),
        )

    # The end of a run.

    @property
    def _stop(self) -> BudgetStop | None:
        """Why the study asked for no further look."""
        return self._proposer.stop if isinstance(self._proposer, StudyProposer) else None

    def _close(self) -> int:
        """Write, send and print the last report; return the exit status."""
        self._mirror.drain()
        unfinished = self._proposer.unfinished()
        if self._stop is not None:
            StudyFolder(self._situation.path).write_stop(self._stop)
        report = self._write_report()
        if report is not None and not unfinished:
            with errors_as_warnings(
                "The next start of this finished study will take a little longer"
            ):
                remember_report(self._situation, report)
        is_sent = self._mirror.close(
            report.files if report else (),
            "FAILED" if unfinished else "FINISHED",
            report.note if report else None,
        )
        click.echo(self._closing_text(unfinished, report))
        click.echo(closing_sentence(self._launch, self._mirror.pages, complete=is_sent))
        return INCOMPLETE if report is None or unfinished else report.exit_code

    def _leave(self) -> int:
        """Say that other drivers run the rest; return the exit status."""
        number = len(self._elsewhere)
        trials = "The trial that is left is" if number == 1 else f"The {number} trials left are"
        click.echo(
            f"{trials} run by other drivers, so this one ends. The last one writes the report."
        )
        return CLEAN

    def _write_report(self) -> WrittenReport | None:
        try:
            return write_report_of(self._situation, running=False)
        except (
            Exception
        ) as error:  # the trainings are done and kept; the report can be written again
            warnings.warn(f"The report could not be written: {error!r}", stacklevel=2)
            return None

    def _closing_text(self, unfinished: Sequence[Task], report: WrittenReport | None) -> str:
        lines = [self._describe_unfinished(task) for task in unfinished]
        if report is not None:
            lines += [f"\n{report.text}\n", f"Report: {report.page}"]
        if self._stop is not None:
            lines.append(self._stop.sentence)
        lines += self._proposer.remarks()
        entries = [
            entry
            for key in self._proposed
            if (entry := self._situation.ledger.entry(key)) is not None
        ]
        rounds: list[int] = []
        if isinstance(self._situation, Situation):
            trained = [entry.key for entry in entries if entry.origin.derived_from is None]
            rounds = self._situation.looks_of_trials(trained)
        lines += scorecard(self._forecast, entries, time.monotonic() - self._started, rounds)
        return "\n".join(lines)

    def _describe_unfinished(self, task: Task) -> str:
        """Say why a trial has no result."""
        failures = self._situation.ledger.failures(task.key)
        if not failures:
            # ``_let_go`` gave it up, or its failure could not be stored either.
            return (
                f"The result of {task.name} could not be stored; the log has the error. The same "
                "command tries again."
            )
        number = "once" if len(failures) == 1 else f"{len(failures)} times, at last"
        return (
            f"{task.name} failed {number}: {failures[-1].reason}. The ledger has its trace; the "
            "same command tries again."
        )
