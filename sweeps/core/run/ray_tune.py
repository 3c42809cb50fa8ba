"""Run trials on Ray Tune: the side of the driver.

Only the modules ``ray_*`` import Ray, which reads its environment on import.
``sweeps.core.plan.ray_environment`` sets it before.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Set
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.util.placement_group import NODE_ID_LABEL_KEY

from sweeps.core.plan.launch_options import Launch
from sweeps.core.run.failures import LONGEST_TRACE, Attempts, Failure
from sweeps.core.run.listener import Listener
from sweeps.core.run.ray_cluster import fits
from sweeps.core.run.ray_messages import Messages, draining_nodes
from sweeps.core.run.ray_worker import FAILED, STARTED, trainable
from sweeps.core.run.roles import TrialQueue
from sweeps.core.run.worker import Spec
from sweeps.core.store.runs import Runs
from toco import interrupts
from toco.files import is_no_room
from toco.room import NoRoomError, sentence_of

# This logger warns that the CSV and JSON copies of the rows are missing.
# ``sweeps.core.plan.ray_environment`` turns these off.
logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)

_NODES_EVERY_S = 2.0
"""Seconds after which the list of nodes is read again: the head is not asked at every event."""
_STOPPING_S = 120.0
"""Longest wait for the checkpoints of trials that were asked to stop.

Schedulers announce the end of a job between 30 s and some minutes ahead. A trial that hangs must
not keep its driver alive.
"""
_SILENT_S = 10.0
"""Seconds without a sign of life from a node after which the driver says so."""
_LEFT_OUT = "left_out"
"""Folder of a session with an empty file for each node that gets no more trials."""
# The state of the driver. Tune pickles its callbacks, searcher and scheduler, so they cannot hold
# it.
_EXPERIMENT: ContextVar[_Experiment] = ContextVar("experiment")


class RayTune:
    """Run trials on the cluster that this process is connected to.

    No state of Ray Tune is ever read again: a restarted driver begins from the run folders. Tune's
    own searchers store their state in its experiment, forget it with the driver, and report a trial
    that a scheduler stopped as complete. So Tune only asks, and its questions are passed on to the
    driver.

    Args:
        launch: Resources of each trial, number of trials at once, number of restarts of each.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    def run(
        self, queue: TrialQueue, listener: Listener, runs: Runs, session: Path, name: str
    ) -> None:
        """Run the trials of ``queue``; see ``sweeps.core.run.roles.Backend.run``."""
        left_out = session / _LEFT_OUT
        messages = Messages(session.name)
        experiment = _Experiment(queue, listener, runs, self._launch, left_out, messages)
        token = _EXPERIMENT.set(experiment)
        function = trainable(runs, f"{name}-{session.name}", session.name, left_out)
        try:
            with interrupts.deferred():
                # Not through a ``Tuner``, which unpickles the exceptions of failed trials.
                tune.run(
                    tune.with_resources(function, _request),
                    name=session.name,
                    storage_path=str(session.parent),
                    # No limit for Tune: ``_DriverScheduler`` decides how often a trial is tried
                    # again.
                    max_failures=-1,
                    max_concurrent_trials=self._launch.concurrent,
                    # The imports of a worker take seconds. With reuse they run once for each
                    # worker, not for each trial.
                    reuse_actors=True,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                    search_alg=_DriverSearcher(),
                    num_samples=-1,
                    scheduler=_DriverScheduler(),  # type: ignore[no-untyped-call]
                    checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                    callbacks=[_Events()],
                    raise_on_failed_trial=False,
                    verbose=0,
                )
        except OSError as error:
            if isinstance(error, NoRoomError) or not is_no_room(error):
                raise
            raise NoRoomError(sentence_of(session.parent, 0, error)) from error
        finally:
            messages.close()
            _EXPERIMENT.reset(token)


def _request(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """Return the resources of a trial. Tune pickles this function, so it belongs to the module."""
    return _EXPERIMENT.get().request(config["trial"]["key"])


class _Experiment:
    """The state of the trials that run in this driver, by key.

    Attributes:
        queue: Where the trials come from.
        listener: Receives the events.
        failed: Tune's ids of the trials that failed for good.
    """

    def __init__(
        self,
        queue: TrialQueue,
        listener: Listener,
        runs: Runs,
        launch: Launch,
        left_out: Path,
        messages: Messages,
    ) -> None:
        self.queue = queue
        self.listener = listener
        self.failed: set[str] = set()
        self._runs = runs
        self._checkpoints: dict[str, tune.Checkpoint] = {}
        self._folders: dict[str, list[str]] = {}
        self._launch = launch
        self._left_out = left_out
        self._attempts = Attempts(launch.max_failures, self._nodes)
        # Host and node of the present attempt, and the failure that it has announced.
        self._places: dict[str, tuple[str, str]] = {}
        self._failures: dict[str, Failure] = {}
        self._no_room: str | None = None
        # They ask trials to stop: on nodes that are about to end, and everywhere at the own end.
        self._messages = messages
        self._draining: frozenset[str] = frozenset()
        self._asked_at = float("-inf")
        self._running: Set[str] = frozenset()
        # By node: its last sign of life, when that was new, and whether its silence was told.
        self._lives: dict[str, tuple[bytes | None, float, bool]] = {}
        self._stopping_since: float | None = None
        self._alive: frozenset[str] = frozenset()
        self._alive_since = float("-inf")

    def suggest(self) -> Spec | None:
        """Return the next trial. A failed evaluation may come again, as a training.

        Raises:
            KeyboardInterrupt: The driver was asked to stop, and no trial runs. Tune asks again and
                again then, without an event in between.
        """
        if interrupts.was_received():
            if not self._running:
                raise KeyboardInterrupt
            return None
        spec = self.queue.next()
        if spec is not None and spec.key in self._folders:
            self._attempts.forget(spec.key)
            # With the old folder in place Tune would choose another name for the new one, and
            # nothing would find that folder.
            for folder in self._folders.pop(spec.key):
                shutil.rmtree(folder, ignore_errors=True)
        return spec

    def request(self, key: str) -> tune.PlacementGroupFactory:
        """Return the resources of a trial's next attempt, and the nodes that it should not use."""
        bundle = {"CPU": self._launch.cpus_per_trial, "GPU": self._launch.gpus_per_trial}
        avoided = sorted(self._attempts.avoided(key) | self._draining)
        selectors = [{NODE_ID_LABEL_KEY: f"!in({','.join(avoided)})"}] if avoided else None
        return tune.PlacementGroupFactory([bundle], bundle_label_selector=selectors)

    def reported(self, key: str, row: Mapping[str, Any]) -> None:
        """Handle a row of an attempt: its place, the failure it announces, or an evaluation."""
        if row.get("status") == STARTED:
            self._places[key] = row["host"], row["node"]
        elif row.get("status") == FAILED:
            self._failures[key] = Failure(**row["failure"])
        else:
            self.listener.reported(key, row)

    def snapshot(self, key: str, checkpoint: tune.Checkpoint) -> None:
        """Hand a snapshot that has arrived to the listener."""
        self._checkpoints[key] = checkpoint
        with checkpoint.as_directory() as snapshot:
            self.listener.snapshot(key, Path(snapshot))

    def ended(self, key: str) -> None:
        """Handle the end of a trial.

        A last snapshot that could not be stored is handed over once more.
        """
        checkpoint = self._checkpoints.pop(key, None)
        if checkpoint is not None and self._runs.status(key) is None:
            self.snapshot(key, checkpoint)
        self.listener.ended(key)

    def failed_now(self, trial: Trial) -> None:
        """Handle a failed attempt: decide whether there is another one, and tell the listener."""
        key = _trial_name(trial)
        host, node = self._places.pop(key, ("", ""))
        failure = self._failures.pop(key, None) or _lost(trial, host, node)
        decision = self._attempts.failed(key, failure)
        if decision.no_room is not None:
            self._no_room = decision.no_room
            return
        if failure.kind == "stopped":
            if self._stopping_since is not None:
                # It may not start again here.
                self.failed.add(trial.trial_id)
            else:
                self.listener.moved(key, host)
        elif failure.kind != "left out":
            (self.listener.lost if decision.starts_again else self.listener.failed)(key, failure)
        self._tell_workers(self._attempts.left_out)
        if decision.left_out is not None:
            self.listener.say(decision.left_out)
        if not decision.starts_again:
            self.failed.add(trial.trial_id)
            self._folders[key] = [path for path in (trial.local_path, trial.path) if path]

    def _tell_workers(self, left_out: Set[str]) -> None:
        """Let the workers of exactly the nodes ``left_out`` refuse trials."""
        refusing = {file.name for file in self._left_out.glob("*")}
        for node in left_out - refusing:
            self._left_out.mkdir(parents=True, exist_ok=True)
            (self._left_out / node).touch()
        for node in refusing - left_out:
            (self._left_out / node).unlink(missing_ok=True)

    def running(self, keys: Set[str]) -> None:
        """Note which trials run now, and ask those to stop whose node or driver is about to end.

        Raises:
            KeyboardInterrupt: The driver was asked to stop, and no trial runs any more.
        """
        self._running = keys
        self.listener.running(keys)
        now = time.monotonic()
        if interrupts.was_received() and self._stopping_since is None:
            self._stopping_since = now
            if keys:
                self.listener.stopping(len(keys))
        draining = self._draining
        if now - self._asked_at > _NODES_EVERY_S:
            self._asked_at, draining = now, draining_nodes()
            self._look_for_life(keys, now)
        self._draining = draining
        self._messages.ask_to_stop(draining, everywhere=self._stopping_since is not None)
        if self._stopping_since is not None and (
            not keys or now - self._stopping_since > _STOPPING_S
        ):
            raise KeyboardInterrupt

    def _look_for_life(self, keys: Set[str], now: float) -> None:
        """Say which nodes of running trials give no sign of life, and which do so again."""
        hosts = {self._places[key][1]: self._places[key][0] for key in keys if key in self._places}
        for node, host in hosts.items():
            life = self._messages.life(node)
            last_life, since, is_told = self._lives.get(node, (None, now, False))
            if life != last_life:
                if is_told:
                    self.listener.say(f"{host} answers again.")
                self._lives[node] = life, now, False
            elif not is_told and now - since > _SILENT_S:
                self.listener.say(
                    f"There is no word from {host} for {now - since:.0f} s. If it is lost, its "
                    "trainings continue on other nodes."
                )
                self._lives[node] = life, since, True
            else:
                self._lives[node] = life, since, is_told

    def check(self) -> None:
        """Check that the trials may continue.

        Raises:
            NoRoomError: The storage, or every node, is full.
            LostLeaseError: Another driver runs the trials now.
        """
        if self._no_room is not None:
            raise NoRoomError(self._no_room)
        self.listener.check()

    def _nodes(self) -> frozenset[str]:
        if time.monotonic() - self._alive_since > _NODES_EVERY_S:
            self._alive = frozenset(
                node["NodeID"] for node in ray.nodes() if fits(self._launch, node)
            )
            self._alive_since = time.monotonic()
        return self._alive


def _trial_name(trial: Trial) -> str:
    return str(trial.config["trial"]["key"])


class _Events(tune.Callback):
    """Pass Tune's events on to the experiment of this process.

    Tune pickles its callbacks with the experiment and loads them from there. So they can hold no
    state.
    """

    def setup(
        self,
        stop: object = None,
        num_samples: int | None = None,
        total_num_samples: int | None = None,
        **info: object,
    ) -> None:
        """Restore the signal handlers.

        Tune replaces them by ones that wait for the end of a step.
        """
        interrupts.reinstall_handlers()

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: Mapping[str, Any],
        **info: object,
    ) -> None:
        _EXPERIMENT.get().reported(_trial_name(trial), result)

    def on_checkpoint(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        checkpoint: tune.Checkpoint,
        **info: object,
    ) -> None:
        _EXPERIMENT.get().snapshot(_trial_name(trial), checkpoint)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        experiment = _EXPERIMENT.get()
        # A trial that failed for good was stopped, and Tune calls that a completion, too.
        if trial.trial_id not in experiment.failed:
            experiment.ended(_trial_name(trial))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        experiment = _EXPERIMENT.get()
        experiment.check()
        experiment.running(
            {_trial_name(trial) for trial in trials if trial.status == Trial.RUNNING}
        )


class _DriverSearcher(Searcher):
    """Ask the driver of this process for trials; stateless like ``_Events``."""

    def suggest(self, trial_id: str) -> Any:  # noqa: ANN401 - as in Ray
        experiment = _EXPERIMENT.get()
        spec = experiment.suggest()
        if spec is not None:
            return {"trial": asdict(spec)}
        return Searcher.FINISHED if experiment.queue.is_done else None

    def on_trial_complete(self, trial_id: str, result: object = None, error: bool = False) -> None:
        """Do nothing: ``_Events`` tells the listener."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the journal of a search is its state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: Tune's experiments are never restored."""


class _DriverScheduler(FIFOScheduler):
    """Decide what follows from a result or a failure; stateless like ``_Events``.

    Tune counts all failures alike. So Tune starts every trial again, and this scheduler stops those
    that have failed for good before they get a worker.
    """

    def on_trial_result(self, controller: object, trial: Trial, result: Mapping[str, Any]) -> str:
        goes_on = _EXPERIMENT.get().queue.goes_on(_trial_name(trial), result)
        return str(FIFOScheduler.CONTINUE if goes_on else FIFOScheduler.STOP)

    def on_trial_error(self, controller: object, trial: Trial) -> None:
        experiment = _EXPERIMENT.get()
        experiment.failed_now(trial)
        if trial.status != Trial.RUNNING:
            trial.update_resources(experiment.request(_trial_name(trial)))

    def choose_trial_to_run(self, controller: Any) -> Trial | None:  # noqa: ANN401 - as in Ray
        for trial in controller.get_trials():
            if trial.status == Trial.PENDING and trial.trial_id in _EXPERIMENT.get().failed:
                controller.stop_trial(trial)
        chosen: Trial | None = super().choose_trial_to_run(controller)
        return chosen


def _lost(trial: Trial, host: str, node: str) -> Failure:
    """Describe a failure that the worker did not announce, from Tune's error file."""
    try:
        text = Path(trial.error_file).read_text(errors="replace") if trial.error_file else ""
    except OSError as error:
        text = f"Its trace cannot be read: {error}"
    last = text.rpartition("Failure # ")[2]
    lines = [line.strip() for line in last.splitlines() if line.strip()]
    is_actors = "RayActorError" in last or "ActorDied" in last or "actor" in last.lower()
    reason = "its worker process is gone" if is_actors or not lines else lines[-1]
    return Failure("lost", reason, text[-LONGEST_TRACE:], host, node)
