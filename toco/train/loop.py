"""The training loop: :func:`train` prepares a run, and ``_Run.train`` makes its updates."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol, runtime_checkable

from tqdm import tqdm

from toco import interrupts
from toco.config import digest
from toco.data import Dataset, notes_of_splits
from toco.data.loading.loader import TrainLoader
from toco.data.views.raw_batch import RawBatch
from toco.evaluate.evaluator import EvaluationStoppedError, evaluate
from toco.methods import Method
from toco.train import checkpoint, distributed
from toco.train.averages import Averages, DivergedError
from toco.train.checkpoint_room import check_room, checkpoint_bytes, explain_disk_errors
from toco.train.fork import Snapshots
from toco.train.inputs import digest_inputs, open_data
from toco.train.optim import build_optimizer
from toco.train.parts import build_loader, build_method
from toco.train.provenance import own_code, provenance
from toco.train.records import averaged
from toco.train.resume import begin_or_resume
from toco.train.run_config import RunConfig
from toco.train.run_folder import RunFolder
from toco.train.step import TrainingStep, begin_peak_memory, peak_memory_bytes

logger = logging.getLogger(__name__)


@runtime_checkable
class Observer(Protocol):
    """Receiver of a run's evaluations, such as a study's worker."""

    def on_evaluation(self, step: int, metrics: dict[str, float], checkpoint: Path) -> None:
        """Receive an evaluation when its row and its checkpoint are on disk.

        The call comes from another thread than the training's. The training goes on and may have
        written rows of later steps. The next evaluation and the end of the run wait until the call
        returns.

        Args:
            step: Optimizer updates before the evaluation.
            metrics: Metrics by key.
            checkpoint: Folder of the checkpoint.
        """


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a run.

    Attributes:
        status: ``finished``, or ``stopped`` on request after a checkpoint.
        step: Optimizer updates done.
        metrics: Mean over the last ``evaluate.average_last`` evaluations.
    """

    status: str
    step: int
    metrics: dict[str, float]


def train(
    config: RunConfig,
    run_dir: Path,
    *,
    recipe: str | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    progress: bool = True,
    prefixes: Path | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Train, evaluate, and store everything in ``run_dir``.

    With several ranks (see :mod:`toco.train.distributed`), every rank calls this function. Rank 0
    writes ``run_dir``, which all ranks must be able to read.

    Args:
        config: The run.
        run_dir: The run folder.
        recipe: Name of the recipe that ``config`` came from, for the record.
        resume: Continue the run that ``run_dir`` holds, or start one if it holds none. On a CPU the
            result is that of the uninterrupted run, bit for bit.
        observer: Receives every evaluation of this call. A training that starts from a snapshot
            reports the evaluation at the snapshot's step, too. It does not report the snapshot's
            earlier evaluations, of which only the rows exist.
        progress: Show a progress bar.
        prefixes: Folder of snapshots; see :mod:`toco.train.fork`. The training starts from the
            snapshot that fits; where none fits, it stores one. All trainings that share the folder
            must run the same code.
        stop: Asks the training to stop, once another thread sets it: after the present update the
            training writes a checkpoint and returns. An evaluation that runs is given up; the
            training makes it when it is resumed. In the main thread, SIGINT, SIGTERM and SIGUSR1
            set the event, too.

    Raises:
        FileExistsError: ``run_dir`` holds a run and ``resume`` is not set.
        ValueError: ``run_dir`` holds a run of another config, of other data or weights, or is in
            use. Or the buffers of a rank differ from those of rank 0.
        NoRoomError: The checkpoints do not fit on the disk of ``run_dir``, or it became full; see
            :mod:`toco.train.checkpoint_room`.
        DivergedError: A loss or a gradient is not finite. ``result.json`` records it, and the last
            checkpoint is kept.
    """
    started = time.monotonic()
    config = config.resolved()
    device = config.torch_device()
    shard = distributed.shard()
    folder = RunFolder(run_dir)

    # Data, network and optimizer.
    train_set, val_set = open_data(config)
    inputs = digest_inputs(config, train_set, val_set)
    method = build_method(config, len(train_set.class_names)).to(device)
    if config.compile:
        method.compile_step()
    optimizer = build_optimizer(method, config.optim)
    loader = build_loader(config, train_set, shard)

    size = checkpoint_bytes(method, optimizer, config.optim)
    with folder.locked() if shard.rank == 0 else nullcontext(), explain_disk_errors(run_dir, size):
        # Run folder: begin a new run, or find the one to resume.
        start_checkpoint, snapshots = None, None
        if shard.rank == 0:
            notes = [str(note) for note in notes_of_splits(train_set, val_set)]
            for note in notes:
                logger.warning("%s", note)
            origin = {
                **provenance(device, inputs),
                "data_notes": notes,
                "own_code": own_code(config),
            }
            check = partial(check_room, run_dir, size, config.keep_checkpoints)
            start_checkpoint = begin_or_resume(
                folder, config, recipe, train_set.class_names, origin, check, resume=resume
            )
            snapshots = None if prefixes is None else Snapshots(prefixes, config, origin)
        earlier_result = distributed.from_first(folder.result)
        if earlier_result is not None and earlier_result["status"] == "finished":
            return Result("finished", earlier_result["step"], earlier_result["metrics"])

        # State: restore the run's checkpoint, or start from another training's snapshot.
        if (
            start_checkpoint is None
            and snapshots is not None
            and (start_checkpoint := snapshots.copy_snapshot(folder)) is not None
        ):
            _report_snapshot(observer, folder, start_checkpoint.step)
        start_step = distributed.from_first(
            lambda: None if start_checkpoint is None else start_checkpoint.step
        )
        if start_step is not None:
            start_checkpoint = start_checkpoint or checkpoint.read(
                folder.checkpoints / checkpoint.folder_name(start_step)
            )
            checkpoint.restore(start_checkpoint, method, optimizer)

        # Fill a cache of images. This may take long, so Ctrl-C must end it at once. From
        # ``run.train`` on, Ctrl-C takes effect at the end of a step only.
        train_set.prepare()
        begin_peak_memory(device)
        run = _Run(
            config=config,
            folder=folder,
            loader=loader,
            val_set=val_set,
            train_step=TrainingStep(method, optimizer, config),
            averages=Averages(start_checkpoint.part("averages") if start_checkpoint else {}),
            writer=checkpoint.Writer(
                folder.checkpoints, digest(config), config.keep_checkpoints, config.is_evaluated
            ),
            snapshots=snapshots,
            observer=observer,
            progress=progress and shard.rank == 0,
            stop=stop or threading.Event(),
            started=started - max((row["time_s"] for row in folder.metrics()), default=0.0),
            step=start_step or 0,
            saved_step=start_step or 0,
        )
        return run.train()


@dataclass(slots=True)
class _Run:
    """A prepared training: its parts, its stages and its position.

    Attributes:
        config: The run, resolved.
        folder: The run folder, which rank 0 writes.
        loader: Batches of the training split.
        val_set: The validation split.
        train_step: Computes one update.
        averages: Means over the steps since the last training row.
        writer: Writes checkpoints while the training goes on.
        snapshots: Stores the snapshot at the end of the prefix. Set on rank 0 only; ``None``
            without a folder of snapshots.
        observer: Receives the evaluations; see :func:`train`.
        progress: Whether this rank shows progress bars.
        stop: Asks the training to stop.
        started: Start of the run on the clock of ``time.monotonic``, moved back by the time of
            earlier, interrupted calls.
        step: Updates done.
        saved_step: Step of the newest checkpoint.
    """

    config: RunConfig
    folder: RunFolder
    loader: TrainLoader
    val_set: Dataset
    train_step: TrainingStep
    averages: Averages
    writer: checkpoint.Writer
    snapshots: Snapshots | None
    observer: Observer | None
    progress: bool
    stop: threading.Event
    started: float
    step: int
    saved_step: int

    def train(self) -> Result:
        """Train to the last step, or until the training is asked to stop.

        Raises:
            DivergedError: A loss or a gradient is not finite; ``result.json`` records it.
        """
        config = self.config
        bar = tqdm(
            total=config.num_steps,
            initial=self.step,
            unit="step",
            disable=not self.progress,
            dynamic_ncols=True,
        )
        remaining_steps = config.num_steps - self.step
        with (
            _signals_set(self.stop),
            self.writer,
            bar,
            closing(self.loader.batches(self.step, remaining_steps, self.stop)) as batches,
        ):
            try:
                # A stop may have come before the evaluation of the start step was complete.
                is_stopped = self._lacks_evaluation() and not self._complete_step(
                    bar, stopping=False
                )
                for batch in () if is_stopped else batches:
                    self._update(batch)
                    bar.update()
                    # The event may be set at any moment, so read it once a step. Several ranks
                    # stop at the same step, by the exchanged value.
                    stopping = (
                        self.stop.is_set()
                        if distributed.shard().world_size == 1
                        else self.averages.stop_was_set
                    )
                    self.writer.check()
                    if self.step % config.log_every == 0 or self.step == config.num_steps:
                        losses = self._log()
                        bar.set_postfix(loss=f"{losses['train/loss_total']:.3f}")
                    if not self._complete_step(bar, stopping=stopping):
                        is_stopped = True
                        break
                self.averages.check()
                if self.step > self.saved_step:
                    # The stop came during the wait for the next batch.
                    self._save(_do_nothing)
                self.writer.wait()
            except DivergedError as error:
                # Wait for the observer of the last evaluation before result.json appears.
                self.writer.wait()
                if distributed.shard().rank == 0:
                    self._finish("diverged", str(error))
                raise

        status, message = "finished", None
        if is_stopped or self.step < config.num_steps:
            status, message = (
                "stopped",
                f"Stopped on request after step {self.step}; --resume continues.",
            )
        return Result(
            status, self.step, distributed.from_first(partial(self._finish, status, message))
        )

    def _complete_step(self, bar: tqdm[NoReturn], *, stopping: bool) -> bool:
        """Evaluate and save what is due after the present step.

        Args:
            bar: Shows the scores of an evaluation.
            stopping: Whether the training is asked to stop: its checkpoint is written.

        Returns:
            Whether the training continues: it was not asked to stop, also not during the
                evaluation. The last step is complete with its evaluation, whatever is asked.
        """
        is_due = self.config.is_evaluated(self.step)
        if is_due or stopping:
            # Only steps whose losses are all finite, and only one state of all ranks.
            self.averages.check()
            distributed.check_buffers(self.train_step.method)
        on_saved: Callable[[Path], None] = _do_nothing
        is_evaluated = False
        if is_due:
            try:
                metrics = self._evaluate()
            except EvaluationStoppedError:
                stopping = True
            else:
                is_evaluated = True
                # Several ranks exchange this at the next step.
                if distributed.shard().world_size == 1:
                    stopping = self.stop.is_set()
                bar.set_postfix(seg=_percent(metrics, "seg"), cam=_percent(metrics, "cam"))
                if self.observer is not None:
                    on_saved = partial(self.observer.on_evaluation, self.step, metrics)
        if is_due or stopping:
            self._save(on_saved)
        # A snapshot holds the evaluation of its step.
        if (
            self.snapshots is not None
            and self.step == self.snapshots.step
            and is_evaluated == is_due
        ):
            self._store_snapshot(self.snapshots)
        return not stopping or (is_evaluated and self.step == self.config.num_steps)

    def _lacks_evaluation(self) -> bool:
        """Whether the evaluation of the start step is due and was not made."""
        return distributed.from_first(
            lambda: (
                self.step > 0
                and self.config.is_evaluated(self.step)
                and ("val", self.step)
                not in {(row["kind"], row["step"]) for row in self.folder.metrics()}
            )
        )

    def _update(self, batch: RawBatch) -> None:
        """Update the network once, and add its losses to the averages.

        Raises:
            DivergedError: A loss or a gradient of an earlier step is not finite.
        """
        started = time.monotonic()
        output, gradient_norm = self.train_step(batch, self.step)
        self.averages.add(output, gradient_norm, self.step, self.stop.is_set())
        self.averages.add_time(time.monotonic() - started)
        self.step += 1

    def _log(self) -> dict[str, float]:
        """Write a training row, the means over the steps since the last one; return its values."""
        values = self.averages.take() | {
            "train/lr": self.train_step.optimizer.param_groups[0]["lr"]
        }
        if distributed.shard().rank == 0:
            self.folder.add_metrics(self.step, "train", time.monotonic() - self.started, values)
        return values

    def _evaluate(self) -> dict[str, float]:
        """Evaluate the present network and return the metrics.

        Raises:
            EvaluationStoppedError: The training is asked to stop.
        """
        # The observer of the previous evaluation may still be copying the run folder.
        self.writer.wait()
        time_s = time.monotonic() - self.started
        method = self.train_step.method
        return evaluate_into(
            self.folder,
            method,
            self.val_set,
            self.config,
            self.step,
            time_s,
            self.progress,
            self.stop,
        )

    def _save(self, on_saved: Callable[[Path], None]) -> None:
        """Start to write a checkpoint, on rank 0."""
        if distributed.shard().rank == 0:
            method, optimizer = self.train_step.method, self.train_step.optimizer
            extra = {"averages": self.averages.state()}
            self.writer.start(self.step, method, optimizer, extra, on_saved, self.folder.mark())
            self.saved_step = self.step

    def _store_snapshot(self, snapshots: Snapshots) -> None:
        """Store a snapshot of the run, from which trainings with the same prefix can start."""
        self.averages.check()
        extra = {"averages": self.averages.state()}
        snapshots.store_snapshot(
            self.folder, self.train_step.method, self.train_step.optimizer, extra
        )

    def _finish(self, status: str, message: str | None) -> dict[str, float]:
        """Write ``result.json`` and return its metrics."""
        rows = self.folder.metrics()
        step_times_s = [
            row["values"]["train/step_time_s"] for row in rows if row["kind"] == "train"
        ]
        final_metrics = averaged(rows, self.config.evaluate.average_last)
        result = {
            "status": status,
            "step": self.step,
            "digest": digest(self.config),
            **final_metrics,
            "message": message,
            "step_time_s": sum(step_times_s) / len(step_times_s) if step_times_s else None,
            "wall_time_s": round(time.monotonic() - self.started, 3),
            "peak_memory_bytes": peak_memory_bytes(self.config.torch_device()),
            "num_parameters": sum(p.numel() for p in self.train_step.method.parameters()),
        }
        self.folder.finish(result)
        metrics: dict[str, float] = final_metrics["metrics"]
        return metrics


def _report_snapshot(observer: Observer | None, folder: RunFolder, step: int) -> None:
    """Send ``observer`` the evaluation at the snapshot's ``step``, if one was made there.

    The snapshot's earlier evaluations have no checkpoint and are not sent.
    """
    for row in folder.metrics():
        if observer is not None and (row["kind"], row["step"]) == ("val", step):
            observer.on_evaluation(
                step, row["values"], folder.checkpoints / checkpoint.folder_name(step)
            )


def evaluate_into(
    folder: RunFolder,
    method: Method,
    val_set: Dataset,
    config: RunConfig,
    step: int,
    time_s: float,
    progress: bool = False,
    stop: threading.Event | None = None,
) -> dict[str, float]:
    """Evaluate ``method``, store evaluation, pictures and row in ``folder``; return the metrics.

    Several ranks evaluate together, and rank 0 writes.

    Args:
        folder: The run folder.
        method: The method, on the run's device.
        val_set: The validation split.
        config: The run.
        step: Optimizer updates so far.
        time_s: Seconds since the start of the run.
        progress: Show a bar.
        stop: Gives the evaluation up, once it is set. Nothing is stored then.

    Raises:
        EvaluationStoppedError: ``stop`` was set, on any rank.
    """
    from toco.evaluate.pictures import save_panels  # matplotlib

    shard = distributed.shard()
    device = config.torch_device()
    evaluation = evaluate(
        method,
        val_set,
        config.evaluate,
        device,
        progress=progress,
        step=step,
        shard=shard,
        stop=stop,
    )
    if shard.rank == 0:
        folder.add_evaluation(step, evaluation, config.evaluate.average_last)
        threshold = config.evaluate.background_threshold
        save_panels(evaluation.pictures, evaluation.class_names, threshold, folder.pictures(step))
        folder.add_metrics(step, "val", time_s, evaluation.metrics)
    return evaluation.metrics


@contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C, SIGTERM or SIGUSR1 set ``stop``; a second signal acts as usual.

    Python allows signal handlers in the main thread only. In another thread, as in a study's
    worker, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former_handlers = {number: signal.getsignal(number) for number in interrupts.SIGNALS}

    def handle(number: int, _frame: object) -> None:
        stop.set()
        interrupts.record(number)
        signal.signal(number, former_handlers[signal.Signals(number)])

    for number in former_handlers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in former_handlers.items():
            signal.signal(number, handler)


def _do_nothing(_: Path) -> None:
    """Ignore the checkpoint: no observer waits for it."""


def _percent(metrics: dict[str, float], label_map: str) -> str:
    miou = metrics.get(f"val/{label_map}_miou")
    return "-" if miou is None else f"{100 * miou:.1f}"
