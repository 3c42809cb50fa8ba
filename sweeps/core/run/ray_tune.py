"""Runs trials on Ray Tune: the only module here that imports Ray.

Ray reads its environment when it is imported: ``sweeps.core.plan.ray_environment`` sets it, before this module is
imported.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray._private.services import find_gcs_addresses
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.util.placement_group import NODE_ID_LABEL_KEY

from sweeps.core.run.failures import (
    LONGEST_TRACE,
    Attempts,
    Failure,
    HeadLostError,
    LeftOutError,
    StorageError,
    failure_of,
)
from sweeps.core.run.head_watch import HeadWatch
from sweeps.core.run.listener import Listener
from sweeps.core.run.worker import Spec, run_trial
from sweeps.core.store.runs import Runs, newest_step
from sweeps.core.store.scratch import scratch_folder, sweep_scratch
from toco import interrupts
from toco.files import is_no_room
from toco.own_modules import add_search_folders, search_folders
from toco.room import NoRoomError, sentence_of

logger = logging.getLogger(__name__)
# It misses the CSV and JSON copies of the rows, which sweeps.core.plan.ray_environment turns off.
logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)

# Nothing large goes through the object store, so Ray's default of 30 % of the memory would be a waste.
_OBJECT_STORE_BYTES = 200 * 1024**2

_STARTED, _FAILED = "started", "failed"
"""Status of the rows that say where an attempt runs, and why it is about to fail."""
_NODES_EVERY_S = 2.0
"""So old may be what is known of the nodes."""
_LEFT_OUT = "left_out"
"""Folder of a session: an empty file for each node that gets no more trials."""


class Proposer(Protocol):
    """What is asked for trials; see ``sweeps.core.run.driver.Driver``."""

    def next(self) -> Spec | None:
        """The next trial; ``None`` where there is none now."""

    @property
    def is_done(self) -> bool:
        """Whether there will be none any more."""

    def goes_on(self, key: str, row: Mapping[str, Any]) -> bool:
        """Whether a trial goes on after what it has reported."""


_EXPERIMENT: ContextVar[_Experiment] = ContextVar("experiment")


@dataclass(frozen=True, slots=True)
class Resources:
    """What trials get.

    Attributes:
        concurrent: Trials at once, at most.
        max_failures: Restarts of one trial, see ``sweeps.core.run.failures``; -1 for any number.
    """

    concurrent: int
    cpus_per_trial: float
    gpus_per_trial: float
    max_failures: int

    def fit(self, node: Mapping[str, Any]) -> bool:
        """Whether a node of ``ray.nodes`` is there and can hold a trial."""
        has, wanted = node["Resources"], {"CPU": self.cpus_per_trial, "GPU": self.gpus_per_trial}
        return bool(node["Alive"]) and all(has.get(kind, 0) >= number for kind, number in wanted.items())


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be the driver of the cluster at ``address``, or of a new one on this machine where that is ``local``.

    Raises:
        ValueError: ``address`` is ``auto``, and several clusters run on this machine.
        ConnectionError: There is no cluster at ``address``, Ray did not start, or its head was lost in the block.
    """
    with ExitStack() as stack:
        options: dict[str, Any] = {}
        if address == "local":
            sweep_scratch()
            # Ray opens its folder to all users of the machine, and Tune keeps pickles there: it lies in a closed one.
            folder = stack.enter_context(scratch_folder("ray", for_sockets=True)) / "ray"
            options = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES, "_temp_dir": str(folder)}
        if address == "auto":
            _refuse_several_clusters()
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **options)
        except SystemExit:
            # Ray's handler of SIGTERM, which stands until the signal is taken back.
            raise KeyboardInterrupt from None
        except ConnectionError:
            raise
        except Exception as error:  # Ray raises a plain one where its processes do not answer in time
            raise ConnectionError(
                f"Ray did not start: {error}. On a busy machine this passes. The same command goes on from here."
            ) from error
        head = HeadWatch(ray.get_runtime_context().gcs_address, _any_node_alive if address == "local" else None)
        try:
            interrupts.take_again()
            head.start()
            yield
        except KeyboardInterrupt:
            if head.is_lost:
                raise HeadLostError(head.loss) from None
            raise
        finally:
            head.close()
            # With a lost head it would end this process with a line of Ray's.
            if not head.is_lost:
                ray.shutdown()
            # Workers of this machine were killed with it.
            sweep_scratch()


def _refuse_several_clusters() -> None:
    """Refuse ``auto`` where several clusters run on this machine: Ray takes any of them, another user's too.

    Raises:
        ValueError: There are several.
    """
    addresses = sorted(find_gcs_addresses())
    if len(addresses) > 1 and not os.environ.get("RAY_ADDRESS"):
        raise ValueError(
            f"--address auto expects one Ray cluster on this machine; {len(addresses)} run here: "
            f"{', '.join(addresses)}. Name one: --address {addresses[0]}"
        )


def _any_node_alive() -> bool:
    return any(node["Alive"] for node in ray.nodes())


def check_resources(resources: Resources, *, may_grow: bool) -> None:
    """See that some node can hold a trial.

    Args:
        resources: What a trial gets.
        may_grow: Nodes may still join, so that it is only worth a warning.

    Raises:
        ValueError: No node can.
    """
    nodes = ray.nodes()
    if any(map(resources.fit, nodes)):
        return
    there = [node["Resources"] for node in nodes if node["Alive"]]
    largest = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in there)
    message = (
        f"A trial wants {resources.cpus_per_trial:g} CPUs and {resources.gpus_per_trial:g} GPUs, but the nodes have "
        f"{largest}. "
        "Lower --cpus-per-trial or --gpus-per-trial, or add a node."
    )
    if not may_grow:
        raise ValueError(message)
    logger.warning("%s Waiting for a node that can.", message)


class RayTune:
    """Runs trials on the cluster that this process is connected to.

    Nothing of Ray Tune's own state is ever read again: a driver that is started anew begins from the run folders.
    Tune's own searchers keep their state in its experiment, forget it with the driver, and report a trial that a
    scheduler stopped as complete: so Tune only asks, and its questions are passed on.

    Args:
        resources: What each trial gets.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def run(self, proposer: Proposer, listener: Listener, runs: Runs, session: Path, name: str) -> None:
        """Run what ``proposer`` asks for; see ``sweeps.core.run.driver.Backend.run``."""
        experiment = _Experiment(proposer, listener, runs, self._resources, session / _LEFT_OUT)
        trainable = tune.with_resources(_trainable(runs, f"{name}-{session.name}", session / _LEFT_OUT), _request)
        token = _EXPERIMENT.set(experiment)
        try:
            # And not through a Tuner, which reads the pickled exceptions of trials that failed.
            tune.run(
                trainable,
                name=session.name,
                storage_path=str(session.parent),
                # How often a trial is tried again is decided here, see `_Deciding`.
                max_failures=-1,
                max_concurrent_trials=self._resources.concurrent,
                # A worker's imports take seconds; with this they are paid once a worker and not once a trial.
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
                search_alg=_Asking(),
                num_samples=-1,
                scheduler=_Deciding(),  # type: ignore[no-untyped-call]
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                callbacks=[_Events()],
                raise_on_failed_trial=False,
                verbose=0,
            )
        except NoRoomError:
            raise
        except OSError as error:
            if not is_no_room(error):
                raise
            raise NoRoomError(sentence_of(session.parent, 0, error)) from error
        finally:
            _EXPERIMENT.reset(token)


def _request(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """What a trial gets; a function of this module, as Tune pickles it."""
    return _EXPERIMENT.get().request(config["trial"]["key"])


class _Experiment:
    """What this driver knows of the trials that run, by key.

    Attributes:
        failed: Tune's ids of the trials that failed for good.
    """

    def __init__(
        self, proposer: Proposer, listener: Listener, runs: Runs, resources: Resources, left_out: Path
    ) -> None:
        self.proposer = proposer
        self.listener = listener
        self.failed: set[str] = set()
        self._runs = runs
        self._checkpoints: dict[str, tune.Checkpoint] = {}
        self._folders: dict[str, list[str]] = {}
        self._resources = resources
        self._left_out = left_out
        self._attempts = Attempts(resources.max_failures, self._nodes)
        # Host and node of the attempt that runs, and why it says that it fails.
        self._places: dict[str, tuple[str, str]] = {}
        self._failures: dict[str, Failure] = {}
        self._no_room: str | None = None
        self._alive: frozenset[str] = frozenset()
        self._alive_since = float("-inf")

    def suggest(self) -> Spec | None:
        """The next trial. One that has failed may come again, to be made in another way."""
        spec = self.proposer.next()
        if spec is not None and spec.key in self._folders:
            self._attempts.forget(spec.key)
            # Tune would give its folder another name, by which nobody would find it again.
            for folder in self._folders.pop(spec.key):
                shutil.rmtree(folder, ignore_errors=True)
        return spec

    def request(self, key: str) -> tune.PlacementGroupFactory:
        """What the next attempt of a trial gets: resources, on a node that it should use."""
        bundle = {"CPU": self._resources.cpus_per_trial, "GPU": self._resources.gpus_per_trial}
        avoided = sorted(self._attempts.avoided(key))
        selectors = [{NODE_ID_LABEL_KEY: f"!in({','.join(avoided)})"}] if avoided else None
        return tune.PlacementGroupFactory([bundle], bundle_label_selector=selectors)

    def started(self, key: str, host: str, node: str) -> None:
        """An attempt has begun."""
        self._places[key] = host, node

    def fails(self, key: str, failure: Failure) -> None:
        """An attempt says that it is about to fail."""
        self._failures[key] = failure

    def snapshot(self, key: str, checkpoint: tune.Checkpoint) -> None:
        """A snapshot has arrived."""
        self._checkpoints[key] = checkpoint
        with checkpoint.as_directory() as snapshot:
            self.listener.snapshot(key, Path(snapshot))

    def ended(self, key: str) -> None:
        """A trial has ended, however it did. What could not be stored of it is handed out once more."""
        checkpoint = self._checkpoints.pop(key, None)
        if checkpoint is not None and self._runs.status(key) is None:
            self.snapshot(key, checkpoint)
        self.listener.ended(key)

    def failed_now(self, trial: Trial) -> None:
        """An attempt has failed: decide whether there is another one, and tell."""
        key = _trial_name(trial)
        host, node = self._places.pop(key, ("", ""))
        failure = self._failures.pop(key, None) or _lost(trial, host, node)
        decision = self._attempts.failed(key, failure)
        if decision.no_room is not None:
            self._no_room = decision.no_room
            return
        if failure.kind != "left out":
            (self.listener.lost if decision.starts_again else self.listener.failed)(key, failure)
        self._tell_workers(self._attempts.left_out)
        if decision.left_out is not None:
            self.listener.left_out(decision.left_out)
        if not decision.starts_again:
            self.failed.add(trial.trial_id)
            self._folders[key] = [path for path in (trial.local_path, trial.path) if path]

    def _tell_workers(self, left_out: Set[str]) -> None:
        """Let ``left_out`` be the nodes whose workers refuse trials: one that is used again must not refuse them."""
        told = {file.name for file in self._left_out.glob("*")}
        for node in left_out - told:
            self._left_out.mkdir(parents=True, exist_ok=True)
            (self._left_out / node).touch()
        for node in told - left_out:
            (self._left_out / node).unlink(missing_ok=True)

    def check(self) -> None:
        """See whether the trials may go on.

        Raises:
            KeyboardInterrupt: Somebody has stopped the driver.
            NoRoomError: The storage, or every node, is full.
            LostLeaseError: Another driver runs the trials now.
        """
        interrupts.check()
        if self._no_room is not None:
            raise NoRoomError(self._no_room)
        self.listener.check()

    def _nodes(self) -> frozenset[str]:
        if time.monotonic() - self._alive_since > _NODES_EVERY_S:
            self._alive = frozenset(node["NodeID"] for node in ray.nodes() if self._resources.fit(node))
            self._alive_since = time.monotonic()
        return self._alive


def _trainable(runs: Runs, name: str, left_out: Path) -> Callable[[dict[str, Any]], None]:
    published, storage = runs.ledger.run_dir, runs.ledger.storage
    folders = search_folders()

    def train_trial(config: dict[str, Any]) -> None:
        # The node of a worker may have another PYTHONPATH than this driver, or none.
        add_search_folders(folders)
        spec = Spec(**config["trial"])
        run_trial(spec, _TuneChannel(published(spec.key), storage, left_out, spec.scratch_bytes))

    # Tune finds a trainable by its name, in a cluster that may run other studies from other versions of this code.
    train_trial.__name__ = re.sub(r"\W", "_", name)
    return train_trial


def _trial_name(trial: Trial) -> str:
    return str(trial.config["trial"]["key"])


class _TuneChannel:
    """Reports through Tune, which keeps the snapshots in its storage."""

    def __init__(self, published: Path, storage: Path, left_out: Path, needed_bytes: int) -> None:
        self._published = published
        self._storage = storage
        self._left_out = left_out
        self._needed_bytes = needed_bytes
        self._host = socket.gethostname()
        self._node = ray.get_runtime_context().get_node_id()

    def begin(self) -> None:
        """Tell the driver where this is, for the case that the worker is lost."""
        tune.report({"status": _STARTED, "host": self._host, "node": self._node})
        if (self._left_out / self._node).exists():
            raise LeftOutError(f"{self._host} gets no more trials.")

    @contextmanager
    def restored(self) -> Iterator[Path | None]:
        """The newer of Tune's checkpoint and the published run folder.

        They are the same, unless a driver was lost: then Tune may be a snapshot behind, or may have lost its state.
        """
        checkpoint = tune.get_checkpoint()
        if checkpoint is None:
            yield self._published if newest_step(self._published) >= 0 else None
            return
        with checkpoint.as_directory() as folder:
            newest = max((Path(folder), self._published), key=newest_step)
            yield newest if newest_step(newest) >= 0 else None

    def report(self, row: dict[str, Any], snapshot: Path) -> None:
        """Copy the snapshot to Tune's storage and hand the row to the driver."""
        try:
            tune.report(row, checkpoint=tune.Checkpoint.from_directory(snapshot))
        except OSError as error:
            if not is_no_room(error):
                raise
            raise StorageError(sentence_of(self._storage, self._needed_bytes, error)) from error

    def fail(self, error: Exception) -> None:
        """Announce the failure to the driver: what Tune hands on of an exception is a pickle."""
        tune.report({"status": _FAILED, "failure": failure_of(error, self._host, self._node).to_json()})


class _Events(tune.Callback):
    """Passes Tune's events on to the experiment of this process.

    Tune pickles its callbacks with the experiment and brings them back from there, so they can hold nothing.
    """

    def setup(
        self,
        stop: object = None,
        num_samples: int | None = None,
        total_num_samples: int | None = None,
        **info: object,
    ) -> None:
        """Take the signals back from Tune, which waits for the end of a step."""
        interrupts.take_again()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Mapping[str, Any], **info: object
    ) -> None:
        key, experiment = _trial_name(trial), _EXPERIMENT.get()
        if result.get("status") == _STARTED:
            experiment.started(key, result["host"], result["node"])
        elif result.get("status") == _FAILED:
            experiment.fails(key, Failure(**result["failure"]))
        else:
            experiment.listener.reported(key, result)

    def on_checkpoint(
        self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: tune.Checkpoint, **info: object
    ) -> None:
        _EXPERIMENT.get().snapshot(_trial_name(trial), checkpoint)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        experiment = _EXPERIMENT.get()
        # One that failed for good is stopped, which to Tune is an end as any.
        if trial.trial_id not in experiment.failed:
            experiment.ended(_trial_name(trial))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        experiment = _EXPERIMENT.get()
        experiment.check()
        experiment.listener.running({_trial_name(trial) for trial in trials if trial.status == Trial.RUNNING})


class _Asking(Searcher):
    """Asks the proposer of this process, see ``_Events`` for why it holds nothing."""

    def suggest(self, trial_id: str) -> Any:  # noqa: ANN401 - Ray's own says less than its documentation
        experiment = _EXPERIMENT.get()
        spec = experiment.suggest()
        if spec is not None:
            return {"trial": spec.to_json()}
        return Searcher.FINISHED if experiment.proposer.is_done else None

    def on_trial_complete(self, trial_id: str, result: object = None, error: bool = False) -> None:
        """Nothing: the listener is told."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal of the search is its state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as Tune's experiments are never restored."""


class _Deciding(FIFOScheduler):
    """Decides what becomes of a trial after a result or a failure, see ``_Events`` for why it holds nothing.

    Tune counts all failures alike. So it starts every trial again, and those that have failed for good are stopped
    before they get a worker.
    """

    def on_trial_result(self, controller: object, trial: Trial, result: Mapping[str, Any]) -> str:
        goes_on = _EXPERIMENT.get().proposer.goes_on(_trial_name(trial), result)
        return str(FIFOScheduler.CONTINUE if goes_on else FIFOScheduler.STOP)

    def on_trial_error(self, controller: object, trial: Trial) -> None:
        experiment = _EXPERIMENT.get()
        experiment.failed_now(trial)
        if trial.status != Trial.RUNNING:
            trial.update_resources(experiment.request(_trial_name(trial)))

    def choose_trial_to_run(self, controller: Any) -> Trial | None:  # noqa: ANN401 - Tune's delegate of its controller
        for trial in controller.get_trials():
            if trial.status == Trial.PENDING and trial.trial_id in _EXPERIMENT.get().failed:
                controller.stop_trial(trial)
        chosen: Trial | None = super().choose_trial_to_run(controller)
        return chosen


def _lost(trial: Trial, host: str, node: str) -> Failure:
    """A failure that the worker did not announce, from the text that Tune has written of it."""
    try:
        text = Path(trial.error_file).read_text(errors="replace") if trial.error_file else ""
    except OSError as error:
        text = f"Its trace cannot be read: {error}"
    last = text.rpartition("Failure # ")[2]
    lines = [line.strip() for line in last.splitlines() if line.strip()]
    is_actors = "RayActorError" in last or "ActorDied" in last or "actor" in last.lower()
    reason = "its worker process is gone" if is_actors or not lines else lines[-1]
    return Failure("lost", reason, text[-LONGEST_TRACE:], host, node)
