"""Runs a search: what its journal has begun first, then new proposals, on Ray; the journal outlives any driver."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from optuna.trial import FrozenTrial

from sweeps.core.plan import ray_environment
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.search_survey import SearchSituation
from sweeps.core.report.search_report import SearchReport, write_search_report
from sweeps.core.run.failures import Failure, LeftOut
from sweeps.core.run.listener import carrying_on
from sweeps.core.run.live_page import LiveReport
from sweeps.core.run.mlflow_mirror import Sender, closing_sentence
from sweeps.core.run.obstacle import Obstacle
from sweeps.core.run.progress import Progress
from sweeps.core.run.worker import Spec
from sweeps.core.store.identity import Identity
from sweeps.core.store.leases import Leases, LostLeaseError
from sweeps.core.store.ledger_entry import Origin
from sweeps.core.store.runs import newest_step
from sweeps.core.store.search_record import RECORD
from sweeps.core.store.search_trials import SearchTrials
from sweeps.core.store.sessions import leave, salvage, session_lease
from toco.room import NoRoomError, shortage
from toco.tracking import Pages, Tracker, read_run_record
from toco.train.provenance import own_command
from toco.train.records import METRICS, averaged, read_rows
from toco.train.run_config import RunConfig
from toco.train.run_folder import RunFolder

_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial of the search with what it stands for; equal values that were proposed twice have the same key."""

    number: int
    config: RunConfig
    identity: Identity

    @property
    def key(self) -> str:
        """Key in the ledger."""
        return self.identity.key

    @property
    def name(self) -> str:
        """What people call it."""
        return f"trial {self.number}"


class SearchMirror(Sender):
    """Sends a search to MLflow."""

    def __init__(self, tracker: Tracker, situation: SearchSituation, proposals: Mapping[str, Proposal]) -> None:
        super().__init__(tracker)
        self._situation = situation
        self._proposals = proposals
        # Now, while the record is whole: it may be damaged before the search ends.
        self._start_id = RECORD.read(situation.path / RECORD.file).start_id

    def _begun(self) -> Iterable[str]:
        return [key for key in self._proposals if self._situation.ledger.run_dir(key).is_dir()]

    def _find_parent(self, *, last: bool) -> str | None:
        plan = self._situation.plan
        tags = {"study": plan.study.name, "digest": plan.digest, "recipe": plan.study.recipe, "role": "search"}
        return self._tracker.ensure_parent(self._start_id, plan.folder_name, tags, last=last)

    def _track(self, key: str, parent: str, *, last: bool) -> str | None:
        proposal, study = self._proposals[key], self._situation.plan.study
        run_dir = self._situation.ledger.run_dir(key)
        tags = {"study": study.name, "cell": proposal.name, "role": "search trial", "key": key}
        return self._tracker.track(run_dir, parent_run_id=parent, run_name=proposal.name, tags=tags, last=last)

    def _write_links(self, pages: Pages, runs: Mapping[str, str]) -> None:
        """The report of a search has no links to MLflow."""


class SearchDriver:
    """One process that runs a search. It is what Ray's runner asks for trials, and what it tells of every event.

    The search's lease is to be held. What is told never raises: a full disk must not end the trainings.
    """

    def __init__(self, situation: SearchSituation, launch: Launch, leases: Leases) -> None:
        self._situation = situation
        self._launch = launch
        self._leases = leases
        self._runs = situation.runs
        self._trials = SearchTrials(situation.journal, situation.plan, self._check_lease)
        self._session = situation.runs.sessions / uuid.uuid4().hex[:12]
        self._resources = launch.resources
        self.proposals: dict[str, Proposal] = {}
        self._numbers: dict[str, list[int]] = {}
        self._begun: list[Proposal] = []
        self._held: list[Proposal] = []
        self._stopped: dict[str, int] = {}
        self._ready: Spec | None = None
        self._error: ValueError | OSError | LostLeaseError | None = None
        self._trial_bytes = 0
        self._obstacle = Obstacle(launch.storage, trial_bytes=0)
        self._progress: Progress | None = None
        self._mirror: SearchMirror | None = None
        self._page = LiveReport(self.write_report)

    def recover(self) -> bool:
        """Bring what an earlier driver began to where it stands; says whether there is anything to run.

        Raises:
            ValueError: The space holds settings that do not go together.
            OSError: A file cannot be read or written.
        """
        salvage(self._runs, self._leases, self._session)
        for trial in self._trials.unfinished():
            proposal = self._proposal(trial)
            self._leases.acquire([proposal.key])
            self._begun.append(proposal)
        self._ready = self.next()
        if self._error is not None:
            raise self._error
        return self._ready is not None or bool(self._held)

    @property
    def num_begun(self) -> int:
        """Trials that go on from a checkpoint."""
        return sum(newest_step(self._situation.ledger.run_dir(key)) > 0 for key in self._numbers) + sum(
            newest_step(self._situation.ledger.run_dir(proposal.key)) > 0 for proposal in self._begun
        )

    @property
    def num_left(self) -> int:
        """Trials that are to run, as far as is known now."""
        return len(self._trials.planned()) - len(self._trials.ended())

    def run(self, tracker: Tracker, address: str, trial_bytes: int) -> frozenset[str]:
        """Run to the end of the search; returns the keys of the trials that failed.

        Args:
            tracker: The MLflow store.
            address: The cluster.
            trial_bytes: What the run folder of a trial comes to hold; 0 where that is not known.

        Raises:
            NoRoomError: There is no room for the trials.
            LostLeaseError: This driver was suspended, and another one runs the search now.
        """
        self._trial_bytes = trial_bytes
        self._obstacle = Obstacle(self._launch.storage, trial_bytes)
        name = self._situation.plan.study.name
        self._progress = progress = self._progress_so_far()
        self._mirror = mirror = SearchMirror(tracker, self._situation, self.proposals)
        self._leases.acquire([session_lease(self._session)])
        if (problem := shortage(self._launch.storage, trial_bytes)) is not None:
            raise NoRoomError(problem)
        complete, is_shown = False, False
        try:
            with self._connected(address) as runner:
                launch = self._launch
                resources = runner.Resources(
                    launch.concurrent, launch.cpus_per_trial, launch.gpus_per_trial, launch.max_failures
                )
                runner.check_resources(resources, may_grow=address != "local")
                # Not before Ray is there: a search that never began would seem to run.
                is_shown = True
                self._page.start()
                mirror.start()
                failed: frozenset[str] = runner.run_search(
                    self, self._runs, self._session / uuid.uuid4().hex[:8], resources, self, name
                )
            for key in tuple(self._numbers):
                self._finish(key)
            if self._error is not None:
                raise self._error
            self.check()
            # What has neither ended nor failed could not be written, as the log says.
            failed |= {key for key, numbers in self._numbers.items() if numbers}
            complete = True
        finally:
            progress.close()
            leave(self._runs, self._session)
            self._leases.release(tuple(self.proposals))
            if is_shown:
                self._page.close()
            if is_shown and not complete:
                mirror.close((), "KILLED")
        return failed

    def close(self, report: SearchReport, *, failed: bool) -> str:
        """Send the report; returns what is to be said of MLflow."""
        assert self._mirror is not None  # noqa: S101 - run() comes first
        complete = self._mirror.close(report.files, "FAILED" if failed else "FINISHED", report.note)
        return closing_sentence(self._launch, self._mirror.pages, complete=complete)

    def write_report(self, *, running: bool = True) -> SearchReport:
        """Write the report as of now; ``running`` makes the page load itself again."""
        # Whoever asks for a report with other code or another number of trials has left that in the search's file.
        self._situation.write()
        return write_search_report(self._situation.path, running=running)

    # What the runner asks.

    @property
    def is_done(self) -> bool:
        """Whether there is nothing more to begin."""
        left = self._ready is not None or self._begun or self._held or not self._trials.is_full
        return self._error is not None or not left

    def next(self) -> Spec | None:
        """The next trial that needs a worker; others are brought to their end here."""
        ready, self._ready = self._ready, None
        if ready is not None:
            return ready
        try:
            while (proposal := self._take()) is not None:
                spec = self._spec(proposal)
                if spec is not None:
                    return spec
        except (ValueError, OSError, LostLeaseError) as error:
            # Raised again by `run`: Ray would bury it in a trace of its own.
            self._error = error
        return None

    def goes_on(self, key: str, row: Mapping[str, Any]) -> bool:
        """Whether a trial goes on after what it has reported."""
        with carrying_on(f"The rung of {self._name(key)} could not be judged, so it goes on"):
            numbers = self._numbers[key]
            step = row.get("step")
            if row.get("status") != "running" or step is None:
                return True
            # The first alone is compared: equal values that were proposed twice are one training.
            self._check_lease()
            if not self._trials.reached(numbers[0], int(step), row):
                self._stopped[key] = int(step)
                self._say(f"{self._name(key)} is stopped at rung {step}.")
                return False
        return True

    # What the runner tells.

    def running(self, keys: Set[str]) -> None:
        """These trials run now; called all the time."""
        with carrying_on("The progress line cannot be printed"):
            if self._progress is not None:
                self._progress.running({str(self.proposals[key].number) for key in keys})

    def reported(self, key: str, row: Mapping[str, Any]) -> None:
        """A trial has reported an evaluation."""
        with carrying_on(f"The progress of {self._name(key)} is unknown"):
            if "step" in row and self._progress is not None:
                self._progress.reported(str(self.proposals[key].number), int(row["step"]))

    def snapshot(self, key: str, snapshot: Path) -> None:
        """A trial's snapshot is in storage."""
        with carrying_on(f"The run folder of {self._name(key)} could not be updated, which is tried again later"):
            if key not in self._numbers:
                # It has ended; Tune hands out the last snapshots once more when it closes.
                return
            with self._obstacle.noted():
                self._leases.check(key)
                self._runs.publish(key, snapshot, self._leases.check)
                self._settle(self.proposals[key])
            self._changed(key)

    def check(self) -> None:
        """See whether the driver may go on; raises as ``Obstacle.check``."""
        self._obstacle.check()

    def lost(self, key: str, failure: Failure) -> None:
        """A trial failed or lost its worker and will be started again."""
        self._note(key, failure)
        self._say(f"{self._name(key)} is started again: {failure.sentence}")

    def failed(self, key: str, failure: Failure) -> None:
        """A trial has failed as often as it may; it stays unfinished, for the next start of the search."""
        self._note(key, failure)
        self._say(f"{self._name(key)} failed: {failure.sentence}")
        self._end(key, failed=True)

    def left_out(self, node: LeftOut) -> None:
        """A node gets no more trials."""
        self._say(node.sentence)

    def _note(self, key: str, failure: Failure) -> None:
        what = f"A failure of {self._name(key)} could not be noted"
        with carrying_on(what), self._obstacle.noted():
            self._leases.check(key)
            self._situation.ledger.add_failure(key, failure.reason, failure.trace, host=failure.host)

    def ended(self, key: str) -> None:
        """A trial will not run any more, however it ended."""
        with carrying_on(f"The end of {self._name(key)} could not be noted"):
            if key in self._stopped:
                self._mark_stopped(key)
            else:
                self._finish(key)
        self._end(key, failed=False)

    # The trials.

    def _take(self) -> Proposal | None:
        """What was begun before, then what is new, then what another driver has held."""
        if self._begun:
            return self._begun.pop(0)
        self._check_lease()
        trial = self._trials.ask()
        if trial is not None:
            return self._proposal(trial)
        if self._held:
            key = self._held[0].key
            # One that has ended may be leased for long by a driver that does other things now.
            if self._situation.ledger.entry(key) is None and not self._leases.acquire([key]):
                time.sleep(_WAIT_S)
                return None
            return self._held.pop(0)
        return None

    def _spec(self, proposal: Proposal) -> Spec | None:
        """What a worker is to run; ``None`` where the trial has ended, is running already, or another driver has it."""
        key = proposal.key
        runs_already = bool(self._numbers.get(key))
        self._numbers.setdefault(key, []).append(proposal.number)
        if self._situation.ledger.entry(key) is not None:
            self._finish(key)
            return None
        if runs_already:
            return None
        if not self._leases.acquire([key]):
            self._numbers.pop(key)
            self._held.append(proposal)
            return None
        if self._settle(proposal):
            self._finish(key)
            return None
        if not self._passes_rungs(proposal):
            self._mark_stopped(key)
            return None
        study = self._situation.plan.study
        config = proposal.config.model_dump(mode="json")
        return Spec(
            key,
            study.recipe,
            study.train,
            config,
            inputs=self._situation.inputs,
            world_size=self._launch.world_size,
            scratch_bytes=self._trial_bytes,
            command=own_command(),
        )

    def _proposal(self, trial: FrozenTrial) -> Proposal:
        config, identity = self._situation.proposal(trial.params)
        proposal = Proposal(trial.number, config, identity)
        self._trials.set_key(trial.number, identity.key)
        self.proposals.setdefault(identity.key, proposal)
        return proposal

    def _passes_rungs(self, proposal: Proposal) -> bool:
        """Judge the rungs that a trial is at already; says whether it goes on.

        Its driver was lost there, or it has the values of a trial that was stopped.
        """
        run_dir = self._situation.ledger.run_dir(proposal.key)
        step = newest_step(run_dir)
        try:
            rows = read_run_record(run_dir).rows if step > 0 else ()
        except ValueError:
            return True
        for row in rows:
            reached = row.kind == "val" and row.step <= min(step, proposal.config.num_steps - 1)
            if reached and not self._trials.reached(proposal.number, row.step, row.values):
                self._stopped[proposal.key] = row.step
                return False
        return True

    def _settle(self, proposal: Proposal) -> bool:
        study = self._situation.plan.study
        origin = Origin(study.name, study.recipe, search=True)
        return self._runs.settle(proposal.key, proposal.identity, origin, self._resources)

    def _finish(self, key: str) -> None:
        """Tell the trials of a key what the ledger has of it."""
        entry = self._situation.ledger.entry(key)
        if entry is None:
            return
        for number in self._numbers.pop(key, []):
            self._trials.finish(number, entry)
            self._note_end(number, failed=False)
        self._leases.release([key])

    def _mark_stopped(self, key: str) -> None:
        """Say in a run folder that its training was stopped; whoever needs the whole one goes on from there."""
        step = self._stopped.pop(key)
        for number in self._numbers.pop(key, []):
            self._trials.stop(number, step)
            self._note_end(number, failed=False)
        folder = RunFolder(self._situation.ledger.run_dir(key))
        if folder.exists() and self._runs.status(key) is None:
            rows = read_rows(folder.path / METRICS).readable
            message = f"Stopped at rung {step} by the search {self._situation.plan.study.name}."
            digest = read_run_record(folder.path).digest
            folder.finish(
                {"status": "stopped", "step": step, "digest": digest, **averaged(rows, 1), "message": message}
            )
        self._leases.release([key])

    def _end(self, key: str, *, failed: bool) -> None:
        with carrying_on(f"The end of {self._name(key)} could not be noted"):
            if failed:
                for number in self._numbers.get(key, ()):
                    self._note_end(number, failed=True)
                self._leases.release([key])
            self._changed(key)
            self._page.changed()

    def _note_end(self, number: int, *, failed: bool) -> None:
        if self._progress is not None:
            self._progress.ended(str(number), failed=failed)

    def _changed(self, key: str) -> None:
        begun = (self._situation.ledger.run_dir(key) / "config.json").is_file()
        if self._mirror is not None and begun:
            self._mirror.changed(key)

    def _check_lease(self) -> None:
        """A driver that was suspended for long may not be the search's any more; it must not write to the journal."""
        self._leases.check(self._situation.lease)

    def _progress_so_far(self) -> Progress:
        plan = self._situation.plan
        progress = Progress(plan.study.name, {str(number): plan.base.num_steps for number in self._trials.planned()})
        for number in self._trials.ended():
            progress.ended_before(str(number), failed=False)
        for proposal in self.proposals.values():
            step = newest_step(self._situation.ledger.run_dir(proposal.key))
            progress.resumed(str(proposal.number), max(step, 0))
        return progress

    def _say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.say(text)
        else:
            click.echo(text, err=True)

    def _name(self, key: str) -> str:
        return self.proposals[key].name if key in self.proposals else key

    @contextlib.contextmanager
    def _connected(self, address: str) -> Iterator[Any]:
        ray_environment.prepare(address)
        # Only now: Ray reads its environment when it is imported.
        from sweeps.core.run import ray_tune as runner

        with runner.connected(address):
            yield runner
