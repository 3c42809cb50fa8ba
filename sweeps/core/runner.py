"""Runs the trials of a plan on Ray Tune: the only module here that imports Ray.

Ray reads its environment when it is imported; ``sweeps.core.ray_environment`` sets it and must come before this module.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from sweeps.core.study import Plan
from sweeps.core.study_folder import StudyFolder, newest_step
from sweeps.core.trial import Spec, run_trial
from sweeps.core.watch import Watch

logger = logging.getLogger(__name__)
# It misses the CSV and JSON copies of the rows, which sweeps.core.ray_environment turns off.
logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)

# Nothing large goes through the object store, so Ray's default of 30 % of the memory would be a waste.
_OBJECT_STORE_BYTES = 200 * 1024**2

_WATCH: ContextVar[Watch] = ContextVar("watch")
_HOPELESS = "hopeless"


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


def run_trials(plan: Plan, folder: StudyFolder, resources: Resources, watch: Watch) -> bool:
    """Run every trial of ``plan`` that has not ended; says whether it was let run to its end.

    A Tune experiment that an earlier driver left is restored. Where that cannot be done, because its files cannot be
    read or ``resources`` are others now, a new one begins, whose trials go on from their run folders.
    """
    trainable = tune.with_resources(
        _trainable(plan, folder), {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}
    )
    tuner = _restored(folder, resources, trainable) or _new(plan, folder, resources, trainable)
    token = _WATCH.set(watch)
    try:
        results = tuner.fit()
    finally:
        _WATCH.reset(token)
    failed = set()
    for result in (results[number] for number in range(len(results))):
        name = (result.config or {})["trial"]["name"]
        if result.error is not None:
            failed.add(name)
        if result.checkpoint is not None and folder.status(name) is None:
            with result.checkpoint.as_directory() as snapshot:
                watch.snapshot(name, Path(snapshot))
    # An interrupted experiment leaves trials that neither ended nor failed.
    return all(trial.name in failed or folder.status(trial.name) for trial in plan.trials)


def _restored(folder: StudyFolder, resources: Resources, trainable: Callable[..., None]) -> tune.Tuner | None:
    path = str(folder.tune)
    if not tune.Tuner.can_restore(path) or folder.resources() != asdict(resources):
        return None
    try:
        return tune.Tuner.restore(path, trainable=trainable, resume_unfinished=True, resume_errored=True)
    except Exception as error:  # pickles of another version of Ray or Python fail in any way they like
        logger.warning("Tune's state in %s cannot be read, trials go on from their run folders: %r", path, error)
        return None


def _new(plan: Plan, folder: StudyFolder, resources: Resources, trainable: Callable[..., None]) -> tune.Tuner:
    folder.set_tune_aside()
    folder.write_resources(asdict(resources))
    study = plan.study
    specs = [
        Spec(trial.name, study.recipe, study.train, trial.config.model_dump(mode="json")).to_json()
        for trial in plan.trials
        if folder.status(trial.name) is None
    ]
    return tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(specs)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=resources.concurrent,
            # A worker's imports take seconds; with this they are paid once a worker and not once a trial.
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=folder.tune.name,
            storage_path=str(folder.path),
            failure_config=tune.FailureConfig(max_failures=resources.max_failures),
            # Two, since Tune may be restored from a state that does not know the newest yet.
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
            callbacks=[_Events()],
            verbose=0,
        ),
    )


def _trainable(plan: Plan, folder: StudyFolder) -> Callable[[dict[str, Any]], None]:
    trials = folder.path / "trials"

    def train_trial(config: dict[str, Any]) -> None:
        spec = Spec(**config["trial"])
        run_trial(spec, _TuneChannel(trials / spec.name))

    # Tune finds a trainable by its name, in a cluster that may run other studies from other versions of this code.
    train_trial.__name__ = plan.folder_name.replace("-", "_")
    return train_trial


def _trial_name(trial: Trial) -> str:
    return str(trial.config["trial"]["name"])


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
        _WATCH.get().lost(_trial_name(trial), _reason(trial))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        _WATCH.get().ended(_trial_name(trial))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        _WATCH.get().failed(_trial_name(trial), _reason(trial))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        _WATCH.get().running({_trial_name(trial) for trial in trials if trial.status == Trial.RUNNING})


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
