"""A trial in a worker: a training that may lose its worker at any moment and continues elsewhere.

The training writes its run folder on the worker's own disk, where no other process writes, not even
a lost worker that still runs. After every evaluation it reports a snapshot of that folder with its
newest checkpoint. The next attempt starts from the snapshot that was reported last. So only the
steps since the last evaluation can be lost, and none is counted twice: rows, evaluations and
checkpoint of a snapshot always belong together.

A trial that is asked to stop reports a snapshot of its present step, and no step is lost.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

from sweeps.core.run.failures import ScratchError, StoppedError, StorageError
from sweeps.core.store.identity import identify
from sweeps.core.store.runs import link_or_copy, repair, seal
from sweeps.core.store.scratch import scratch_folder, sweep_scratch
from toco.evaluate.evaluator import EvaluationStoppedError
from toco.files import is_no_room
from toco.processes import MachineError
from toco.room import sentence_of, shortage
from toco.train.averages import DivergedError
from toco.train.checkpoint import all_in
from toco.train.loop import Result
from toco.train.provenance import recording_command
from toco.train.ranks import train_on_ranks
from toco.train.records import METRICS, read_rows
from toco.train.reevaluate import reevaluate
from toco.train.run_config import RunConfig
from toco.train.run_folder import RunFolder


class Channel(Protocol):
    """The connection of a trial to its driver.

    Attributes:
        stop: Set when the trial has to stop: its node or its driver is about to end.
    """

    stop: threading.Event

    def restored(self) -> AbstractContextManager[Path | None]:
        """Open the snapshot that was reported last; ``None`` on a first start."""

    def report(self, row: dict[str, Any], snapshot: Path) -> None:
        """Hand over a row and a snapshot; the snapshot is stored safely when this returns."""

    def begin(self) -> None:
        """Say where the trial is about to run.

        Raises:
            LeftOutError: No trial should run on this node.
        """

    def fail(self, error: Exception) -> None:
        """Say why the trial is about to fail."""


@dataclass(frozen=True, slots=True)
class Spec:
    """All that a worker needs to run a trial: plain values, which any process and version can read.

    Attributes:
        key: Key of the trial in the ledger.
        recipe: Name of the recipe, for the record.
        train: ``module:function`` with the signature of ``toco.train.loop.train``.
        config: The ``RunConfig`` as JSON.
        source: Run folder whose checkpoints are evaluated again, instead of a training.
        prefixes: Folder of the snapshots of shared prefixes; see :mod:`toco.train.fork`.
        inputs: Digests of the files that the trial reads, as the driver computed them.
        world_size: Processes that train it together, one for each GPU.
        scratch_bytes: Bytes that its temporary folder will hold; 0 where unknown.
        command: The command of the study, for the record.
    """

    key: str
    recipe: str
    train: str
    config: Mapping[str, Any]
    source: str | None = None
    prefixes: str | None = None
    inputs: Mapping[str, str | None] = field(default_factory=dict)
    world_size: int = 1
    scratch_bytes: int = 0
    command: tuple[str, ...] = ()


def run_trial(spec: Spec, channel: Channel) -> None:
    """Run a trial from its last snapshot, and report every evaluation once.

    The last report's snapshot holds ``result.json``; its row has the status ``finished`` or
    ``diverged``.

    Raises:
        Exception: Any error of the trial, after it was told to the channel.
    """
    try:
        channel.begin()
        sweep_scratch()
        with recording_command(spec.command or None):
            _run(spec, channel)
    except Exception as error:
        failure = _with_folder(error, spec)
        channel.fail(failure)
        if failure is error:
            raise
        raise failure from error


def _with_folder(error: Exception, spec: Spec) -> Exception:
    """Name folder and bytes in the error of a full disk; return other errors unchanged."""
    if not isinstance(error, OSError) or not is_no_room(error):
        return error
    folder = (
        Path(error.filename).parent
        if isinstance(error.filename, str)
        else Path(tempfile.gettempdir())
    )
    # Trials share checkpoints in the storage, where all nodes write.
    is_shared = spec.prefixes is not None and folder.is_relative_to(spec.prefixes)
    return (StorageError if is_shared else ScratchError)(
        sentence_of(folder, spec.scratch_bytes, error)
    )


def _run(spec: Spec, channel: Channel) -> None:
    # Check code and disk.
    config = RunConfig.model_validate(spec.config)
    if identify(config, spec.train, spec.inputs).key != spec.key:
        raise ValueError(
            "The code that this worker has imported is not the code that the study was planned "
            "with, so its result would be stored under a wrong key. Bring the same code to every "
            "node, or start the study again if the code was changed while it ran."
        )
    if (problem := shortage(Path(tempfile.gettempdir()), spec.scratch_bytes)) is not None:
        raise ScratchError(problem)
    # Evaluate a stored training again, or train from the last snapshot.
    with scratch_folder(spec.key) as scratch:
        run_dir = scratch / spec.key
        reporter = _Reporter(channel, run_dir, scratch / "snapshot", config.num_steps)
        if spec.source is not None:
            try:
                result = reevaluate(
                    Path(spec.source),
                    run_dir,
                    config,
                    "evaluate",
                    recipe=spec.recipe,
                    stop=channel.stop,
                )
            except EvaluationStoppedError as error:
                raise StoppedError(str(error)) from error
            reporter.report({"status": result.status, "step": result.step, **result.metrics})
            return
        train: Callable[..., Result] = resolve_name(spec.train)
        if spec.world_size > 1:
            train = partial(
                train_on_ranks, spec.world_size, partial(_train_recording, spec.command, train)
            )
        with channel.restored() as snapshot:
            if snapshot is not None:
                shutil.copytree(snapshot, run_dir)
                repair(run_dir)
        options: dict[str, Any] = {} if spec.prefixes is None else {"prefixes": Path(spec.prefixes)}
        try:
            result = train(
                config,
                run_dir,
                recipe=spec.recipe,
                resume=True,
                observer=reporter,
                progress=False,
                stop=channel.stop,
                **options,
            )
        except DivergedError:
            # Deterministic, so that a restart would diverge again: this is a result, not a failure.
            reporter.report({"status": "diverged"})
            return
        if result.status != "finished":
            if not channel.stop.is_set():
                raise MachineError(
                    f"The training was {result.status} by a signal after step {result.step}."
                )
            if result.step > 0:
                reporter.report({"status": "stopped", "step": result.step})
            raise StoppedError(f"Stopped after step {result.step}, as requested.")
        reporter.report({"status": result.status, "step": result.step, **result.metrics})


def _train_recording(
    command: tuple[str, ...],
    train: Callable[..., Result],
    *arguments: Any,  # noqa: ANN401 - those of train
    **options: Any,  # noqa: ANN401
) -> Result:
    """Train in a rank: a process of its own, which has to be told the recorded command again."""
    with recording_command(command or None):
        return train(*arguments, **options)


class _Reporter:
    """The observer of the training, which reports to the channel."""

    def __init__(self, channel: Channel, run_dir: Path, snapshot: Path, num_steps: int) -> None:
        self._channel = channel
        self._run_dir = run_dir
        self._snapshot = snapshot
        self._num_steps = num_steps

    def on_evaluation(self, step: int, metrics: dict[str, float], checkpoint: Path) -> None:
        """Report an evaluation.

        That of the last step is left to ``result.json``, which follows at once.
        """
        if step < self._num_steps:
            self.report({"status": "running", "step": step, **metrics}, until_step=step)

    def report(self, row: dict[str, Any], until_step: int | None = None) -> None:
        """Report ``row`` with the present run folder, without rows of steps after ``until_step``.

        The training continues meanwhile, but writes nothing to the folder until this returns.
        """
        shutil.rmtree(self._snapshot, ignore_errors=True)
        left_out = [*all_in(self._run_dir / "checkpoints")[:-1], self._run_dir / METRICS]
        # Links, because copying a large checkpoint would delay the training.
        shutil.copytree(
            self._run_dir,
            self._snapshot,
            copy_function=link_or_copy,
            ignore=lambda folder, names: [name for name in names if Path(folder, name) in left_out],
        )
        rows = read_rows(self._run_dir / METRICS).readable
        RunFolder(self._snapshot).set_metrics(
            [
                stored_row
                for stored_row in rows
                if until_step is None or stored_row["step"] <= until_step
            ]
        )
        seal(self._snapshot)
        self._channel.report(row, self._snapshot)
