"""The loop of a study or a search: a proposer decides, a backend runs on workers, a listener stores.

The driver between them holds the leases, so that no trial is computed twice. It takes one when a
worker is free, not before: what waits for a worker here is free for another driver of the same
study.
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

from sweeps.core.findings.exit_status import INCOMPLETE
from sweeps.core.plan.forecast import scorecard
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import SearchSituation, Situation, Task
from sweeps.core.report import WrittenReport
from sweeps.core.run.failures import failure_of
from sweeps.core.run.listener import Listener, carrying_on
from sweeps.core.run.live_page import LivePage, remember_report, write_report_of
from sweeps.core.run.mlflow_mirror import Mirror, closing_sentence
from sweeps.core.run.roles import Connect, Proposer
from sweeps.core.run.search_proposer import SearchProposer
from sweeps.core.run.study_proposer import StudyProposer
from sweeps.core.run.worker import Spec
from sweeps.core.store.forecast_record import Forecast
from sweeps.core.store.leases import Leases, LostLeaseError
from sweeps.core.store.ledger_entry import Origin
from sweeps.core.store.runs import leave, salvage, session_lease
from toco.files import is_no_room
from toco.room import NoRoomError, shortage
from toco.tracking import Tracker
from toco.train.provenance import own_command
from toco.train.reevaluate import reevaluate

_POLL_S = 5.0
"""Seconds between looks at the trials of other drivers."""
_SLICE_S = 1.0
"""Seconds after which trials that need no worker wait until the backend has dealt with its events."""


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
            StudyProposer(situation)
            if isinstance(situation, Situation)
            else SearchProposer(situation, leases)
        )
        self._progress = self._proposer.progress()
        self._mirror = Mirror(tracker, situation, self._proposer.trials)
        self._page = LivePage(situation) if is_shown else None
        # Trials that were proposed and are not leased; then by key those that this driver leases,
        # as several may be one training; then, by key and name, those that others lease.
        self._ready: deque[Task] = deque()
        self._tasks: dict[str, list[Task]] = {}
        self._elsewhere: dict[tuple[str, str], Task] = {}
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
            trial_bytes=forecast.trial_bytes,
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
        return not (self._ready or self._tasks or self._elsewhere) and self._proposer.is_done

    def next(self) -> Spec | None:
        """The next trial for a worker; ``None`` where there is none now. Others are brought to their end here."""
        first, self._first = self._first, None
        if first is not None or self._error is not None:
            return first
        try:
            with self._listener.noting():
                spec = self._next()
                if spec is None and not (self._ready or self._tasks) and self._elsewhere:
                    self._listener.waiting_for(
                        next(iter(self._elsewhere.values())), len(self._elsewhere)
                    )
        except (ValueError, OSError, LostLeaseError) as error:
            # Raised again at the end: Ray would bury it in a trace of its own.
            self._error = error
            return None
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
        """Begin to fill MLflow and the page. Otherwise MLflow shows a study as RUNNING when Ray failed to start."""
        if not self._has_begun:
            self._has_begun = True
            if self._page is not None:
                self._page.start()
            self._mirror.start()

    def _next(self) -> Spec | None:
        began = time.monotonic()
        if self._elsewhere and began - self._looked_elsewhere >= _POLL_S:
            # They may have ended, or their driver may be gone.
            self._looked_elsewhere = began
            self._ready.extendleft(self._elsewhere.values())
            self._elsewhere.clear()
        while time.monotonic() - began < _SLICE_S:
            self._add(self._proposer.propose(is_idle=not self._ready))
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
        """Queue what was proposed, evaluations first."""
        self._proposed |= {task.key: None for task in tasks}
        self._ready.extendleft(task for task in reversed([*tasks]) if task.source is not None)
        self._ready.extend(task for task in tasks if task.source is None)

    def _take(self, task: Task) -> bool:
        """Lease ``task``; says whether a worker has to run it. If not, it ends here, or another driver has it.

        No worker is needed by what ended when its driver was lost, and by what a stored threshold
        curve answers.
        """
        self._progress.expect(task.name, task.config.num_steps)
        if task.key in self._tasks:
            # Equal values that were proposed twice are one training.
            self._tasks[task.key].append(task)
            return False
        is_finished = bool(self._situation.ledger.finished_keys([task.key]))
        if not is_finished:
            if not self._leases.acquire([task.key]):
                self._set_aside(task)
                return False
            # What a driver that is gone had received of this trial, or of others.
            salvage(self._runs, self._leases, self._session)
        self._tasks[task.key] = [task]
        try:
            is_finished = is_finished or self._listener.settle(task)
        except LostLeaseError:
            self._set_aside(*self._tasks.pop(task.key))
            return False
        except OSError as error:  # a ledger that cannot be written, for this trial at least
            self._fail_here(task, error)
            return False
        if is_finished:
            self._listener.ended(task.key)
            return False
        if task.source is not None and task.way == "rescore":
            self._rescore(task, self._situation.ledger.run_dir(task.source))
            return False
        return True

    def _set_aside(self, *tasks: Task) -> None:
        """Wait for another driver, which has the leases of ``tasks``."""
        if not self._elsewhere:
            self._looked_elsewhere = time.monotonic()
        self._elsewhere |= {(task.key, task.name): task for task in tasks}

    def _rescore(self, task: Task, source: Path) -> None:
        """Enter what the evaluations in the run folder ``source`` say of ``task``."""
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
            str(storage / "prefixes" / task.identity.surroundings) if task.prefix_shared else None,
            task.inputs,
            launch.world_size,
            self._forecast.trial_bytes,
            own_command(),
        )

    # The end.

    def _close(self) -> int:
        """Write and send the last report, and print it; returns the exit status."""
        self._mirror.drain()
        unfinished = self._proposer.unfinished()
        report = self._write_report()
        if report is not None and not unfinished:
            with carrying_on("The next start of this finished study will take a little longer"):
                remember_report(self._situation, report)
        is_sent = self._mirror.close(
            report.files if report else (),
            "FAILED" if unfinished else "FINISHED",
            report.note if report else None,
        )
        click.echo(self._closing_text(unfinished, report))
        click.echo(closing_sentence(self._launch, self._mirror.pages, complete=is_sent))
        return INCOMPLETE if report is None or unfinished else report.exit_code

    def _write_report(self) -> WrittenReport | None:
        try:
            return write_report_of(self._situation, running=False)
        except (
            Exception
        ) as error:  # the trainings are done and kept; the report can be written again
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
        entries = [
            entry
            for key in self._proposed
            if (entry := self._situation.ledger.entry(key)) is not None
        ]
        lines += scorecard(self._forecast, entries, time.monotonic() - self._started)
        return "\n".join(lines)
