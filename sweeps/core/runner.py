"""Runs trials on Ray Tune: the only module here that imports Ray.

Ray reads its environment when it is imported; ``sweeps.core.ray_environment`` sets it and must come before this module.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from sweeps.core.runs import Runs, newest_step
from sweeps.core.trial import Spec, run_trial
from sweeps.core.watch import Watch

logger = logging.getLogger(__name__)
# It misses the CSV and JSON copies of the rows, which sweeps.core.ray_environment turns off.
logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)

# Nothing large goes through the object store, so Ray's default of 30 % of the memory would be a waste.
_OBJECT_STORE_BYTES = 200 * 1024**2

_TRACEBACK_CHARACTERS = 8000

_HOPELESS = "hopeless"


class Listener(Protocol):
    """Told of every event; see ``sweeps.core.watch.Watch``."""

    def running(self, keys: Set[str]) -> None:
        """These trials run now; called all the time."""

    def reported(self, key: str, row: Mapping[str, Any]) -> None:
        """A trial has reported an evaluation."""

    def snapshot(self, key: str, snapshot: Path) -> None:
        """A trial's snapshot is in storage."""

    def lost(self, key: str, reason: str, trace: str) -> None:
        """A trial failed or lost its worker and will be started again."""

    def failed(self, key: str, reason: str, trace: str) -> None:
        """A trial has failed as often as it may."""

    def ended(self, key: str) -> None:
        """A trial will not run any more, however it ended."""


class Proposer(Protocol):
    """Decides what a search runs."""

    def next(self) -> Spec | None:
        """The next trial; ``None`` where there is none now."""

    @property
    def is_done(self) -> bool:
        """Whether there will be none any more."""

    def goes_on(self, key: str, row: Mapping[str, Any]) -> bool:
        """Whether a trial goes on after what it has reported."""


_WATCH: ContextVar[Listener] = ContextVar("watch")
_PROPOSER: ContextVar[Proposer] = ContextVar("proposer")


@dataclass(frozen=True, slots=True)
class Resources:
    """What trials get.

    Attributes:
        concurrent: Trials at once, at most.
        max_failures: Restarts of one trial, whatever the reason but a ``ValueError``; -1 for any number.
    """

    concurrent: int
    cpus_per_trial: float
    gpus_per_trial: float
    max_failures: int


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be the driver of the cluster at ``address``, or of a new one on this machine where that is ``local``.

    Raises:
        ConnectionError: There is no cluster at ``address``.
    """
    if address == "local":
        options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    else:
        options = {}
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **options)
    try:
        yield
    finally:
        ray.shutdown()


def check_resources(resources: Resources, *, may_grow: bool) -> None:
    """See that some node can hold a trial.

    Args:
        resources: What a trial gets.
        may_grow: Nodes may still join, so that it is only worth a warning.

    Raises:
        ValueError: No node can.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": resources.cpus_per_trial, "GPU": resources.gpus_per_trial}
    if any(all(node.get(kind, 0) >= number for kind, number in wanted.items()) for node in nodes):
        return
    largest = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    message = (
        f"A trial wants {wanted['CPU']:g} CPUs and {wanted['GPU']:g} GPUs, but the nodes have {largest}. "
        "Lower --cpus-per-trial or --gpus-per-trial, or add a node."
    )
    if not may_grow:
        raise ValueError(message)
    logger.warning("%s Waiting for a node that can.", message)


def run_trials(
    specs: Sequence[Spec], runs: Runs, session: Path, resources: Resources, watch: Watch, name: str
) -> tuple[frozenset[str], bool]:
    """Run ``specs``; returns the keys of those that failed, and whether they all were let run to their end.

    Nothing of Ray Tune's own state is ever read again: a driver that is started anew begins from the run folders.

    Args:
        specs: The trials, at least one.
        runs: Where their run folders are.
        session: Folder of this driver alone, seen by all nodes.
        resources: What each of them gets.
        watch: Told of everything.
        name: Name of the study, by which Ray lists the trials.
    """
    failed = _fit(
        {"param_space": {"trial": tune.grid_search([spec.to_json() for spec in specs])}},
        {},
        runs,
        session,
        resources,
        watch,
        name,
    )
    # An interrupted experiment leaves trials that neither ended nor failed.
    return failed, all(spec.key in failed or runs.status(spec.key) for spec in specs)


def run_search(
    proposer: Proposer, runs: Runs, session: Path, resources: Resources, watch: Listener, name: str
) -> frozenset[str]:
    """Run what ``proposer`` asks for, one after the other, until it has no more; returns the keys of those that failed.

    Tune's own searchers keep their state in its experiment, forget it with the driver, and report a trial that a
    scheduler stopped as complete: so Tune only asks, and both its questions are passed on.

    Args:
        proposer: Says what to run next, and what to stop.
        runs: Where the run folders are.
        session: Folder of this driver alone, seen by all nodes.
        resources: What each trial gets.
        watch: Told of everything.
        name: Name of the search, by which Ray lists the trials.
    """
    token = _PROPOSER.set(proposer)
    try:
        scheduler = _Stopping()  # type: ignore[no-untyped-call]
        options = {"search_alg": _Asking(), "scheduler": scheduler, "num_samples": -1}
        return _fit({}, options, runs, session, resources, watch, name)
    finally:
        _PROPOSER.reset(token)


def _fit(
    experiment: Mapping[str, Any],
    options: Mapping[str, Any],
    runs: Runs,
    session: Path,
    resources: Resources,
    watch: Listener,
    name: str,
) -> frozenset[str]:
    """Run an experiment of Tune; returns the keys of the trials that failed."""
    trainable = tune.with_resources(
        _trainable(runs, f"{name}-{session.name}"), {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}
    )
    tuner = tune.Tuner(
        trainable,
        **experiment,
        tune_config=tune.TuneConfig(
            max_concurrent_trials=resources.concurrent,
            # A worker's imports take seconds; with this they are paid once a worker and not once a trial.
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
            **options,
        ),
        run_config=tune.RunConfig(
            name=session.name,
            storage_path=str(session.parent),
            failure_config=tune.FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[_Events()],
            verbose=0,
        ),
    )
    token = _WATCH.set(watch)
    try:
        results = tuner.fit()
    finally:
        _WATCH.reset(token)
    failed = set()
    for result in (results[number] for number in range(len(results))):
        key = (result.config or {})["trial"]["key"]
        if result.error is not None:
            failed.add(key)
        if result.checkpoint is not None and runs.status(key) is None:
            with result.checkpoint.as_directory() as snapshot:
                watch.snapshot(key, Path(snapshot))
    return frozenset(failed)


def _trainable(runs: Runs, name: str) -> Callable[[dict[str, Any]], None]:
    published = runs.ledger.run_dir

    def train_trial(config: dict[str, Any]) -> None:
        spec = Spec(**config["trial"])
        run_trial(spec, _TuneChannel(published(spec.key)))

    # Tune finds a trainable by its name, in a cluster that may run other studies from other versions of this code.
    train_trial.__name__ = re.sub(r"\W", "_", name)
    return train_trial


def _trial_name(trial: Trial) -> str:
    return str(trial.config["trial"]["key"])


class _TuneChannel:
    """Reports through Tune, which keeps the snapshots in its storage."""

    def __init__(self, published: Path) -> None:
        self._published = published

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
        tune.report(row, checkpoint=tune.Checkpoint.from_directory(snapshot))

    def give_up(self) -> None:
        """Announce the failure to the driver, see ``_Events``."""
        tune.report({"status": _HOPELESS})


class _Events(tune.Callback):
    """Passes Tune's events on to the watch of this process.

    Tune pickles its callbacks with the experiment and brings them back from there, so they can hold nothing.
    """

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Mapping[str, Any], **info: object
    ) -> None:
        if result.get("status") == _HOPELESS:
            # Tune restarts after every exception alike; it asks the trial how often.
            trial.max_failures = 0
        _WATCH.get().reported(_trial_name(trial), result)

    def on_checkpoint(
        self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: tune.Checkpoint, **info: object
    ) -> None:
        with checkpoint.as_directory() as snapshot:
            _WATCH.get().snapshot(_trial_name(trial), Path(snapshot))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        _WATCH.get().lost(_trial_name(trial), _reason(trial), _traceback(trial))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        _WATCH.get().ended(_trial_name(trial))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        _WATCH.get().failed(_trial_name(trial), _reason(trial), _traceback(trial))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        _WATCH.get().running({_trial_name(trial) for trial in trials if trial.status == Trial.RUNNING})


class _Asking(Searcher):
    """Asks the proposer of this process, see ``_Events`` for why it holds nothing."""

    def suggest(self, trial_id: str) -> Any:  # noqa: ANN401 - Ray's own says less than its documentation
        proposer = _PROPOSER.get()
        spec = proposer.next()
        if spec is not None:
            return {"trial": spec.to_json()}
        return Searcher.FINISHED if proposer.is_done else None

    def on_trial_complete(self, trial_id: str, result: object = None, error: bool = False) -> None:
        """Nothing: the watch is told."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal of the search is its state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as Tune's experiments are never restored."""


class _Stopping(FIFOScheduler):
    """Asks the proposer of this process whether a trial goes on."""

    def on_trial_result(self, controller: object, trial: Trial, result: Mapping[str, Any]) -> str:
        goes_on = _PROPOSER.get().goes_on(_trial_name(trial), result)
        return str(FIFOScheduler.CONTINUE if goes_on else FIFOScheduler.STOP)


def _reason(trial: Trial) -> str:
    """What went wrong last, in a line; Tune keeps the whole trace in the trial's ``error.txt``."""
    # Written by this process a moment ago. `trial.get_pickled_error` looks in storage, where it comes later.
    path = trial.pickled_error_file
    try:
        error = ray.cloudpickle.loads(Path(path).read_bytes()) if path else None
        if isinstance(error, ray.exceptions.RayTaskError):
            error = error.as_instanceof_cause()
    except Exception as unreadable:  # a class that only the worker can import, a full disk
        return f"its error cannot be read here ({unreadable!r}), see {trial.error_file}"
    if isinstance(error, ray.exceptions.RayActorError):
        return "its worker process is gone"
    # Ray's versions of an exception end with the original's own message.
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _traceback(trial: Trial) -> str:
    """The end of the trace of what went wrong last, for the record."""
    path = trial.error_file
    try:
        text = Path(path).read_text(errors="replace") if path else ""
    except OSError as error:
        return f"Its trace cannot be read: {error}"
    return text[-_TRACEBACK_CHARACTERS:]
