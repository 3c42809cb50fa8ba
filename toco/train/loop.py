"""The training loop, from top to bottom."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from tqdm import tqdm

from toco import interrupts
from toco.config import digest
from toco.data import Dataset, TrainLoader, notes_of_splits, refuse_overlap
from toco.evaluate import evaluate
from toco.files import printable, sha256
from toco.methods import Method
from toco.registry import load
from toco.train import checkpoint, distributed
from toco.train.averages import Averages, DivergedError
from toco.train.checkpoint_room import check_room, checkpoint_bytes, room_in_sentences
from toco.train.fork import Prefixes
from toco.train.optim import build_optimizer
from toco.train.run_config import RunConfig
from toco.train.run_folder import Inputs, RunFolder, own_code, provenance
from toco.train.step import TrainingStep, peak_memory_bytes

logger = logging.getLogger(__name__)


@runtime_checkable
class Observer(Protocol):
    """Somebody who watches a run, such as a sweep."""

    def on_evaluation(self, step: int, metrics: dict[str, float], checkpoint: Path) -> None:
        """Called when the evaluation after ``step`` updates, its row and its checkpoint are on disk.

        It is called in another thread than the training's, which goes on and may have rows of later steps by then; the
        next evaluation and the end of the run wait for it.
        """


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended.

    Attributes:
        status: ``finished``, or ``stopped`` by a signal after a checkpoint.
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
) -> Result:
    """Train, evaluate and keep everything in ``run_dir``.

    Of the ranks of :mod:`toco.train.distributed`, all of which call this, the first writes ``run_dir``; all see it.

    Args:
        config: The run.
        run_dir: The run folder.
        recipe: Name of the recipe that ``config`` came from, for the record.
        resume: Continue the run that ``run_dir`` holds, or start one if it holds none. On a CPU the result is that of
            the uninterrupted run, bit for bit.
        observer: Told of every evaluation.
        progress: Show a progress bar.
        prefixes: Folder of trainings' beginnings; see :mod:`toco.train.fork`. The training starts from one of them
            where it can, and leaves its own there. All that share the folder must run the same code.

    Raises:
        FileExistsError: ``run_dir`` holds a run and ``resume`` is not set.
        ValueError: ``run_dir`` holds a run of another config, of other data or weights, or is in use.
        NoRoomError: The checkpoints do not fit on the disk of ``run_dir``, or it became full; see
            :mod:`toco.train.room`.
        DivergedError: A loss is not finite. ``result.json`` says so, and the last checkpoint is kept.
    """
    started = time.monotonic()
    config = config.resolved()
    device = config.torch_device()
    shard = distributed.shard()
    folder = RunFolder(run_dir)
    train_set, val_set = open_data(config)
    inputs = Inputs(train_set.manifest_digest(), val_set.manifest_digest(), weights_sha256(config))
    method = build_method(config, len(train_set.class_names)).to(device)
    if config.compile:
        method.compile_step()
    optimizer = build_optimizer(method.parameter_groups(), config.optim)
    loader = TrainLoader(
        train_set,
        config.views,
        batch_size=config.batch_size,
        seed=config.seed,
        num_workers=config.num_workers,
        pin_memory=device.type == "cuda",
        shard=shard,
        extra_views=config.method.extra_views(),
    )
    size = checkpoint_bytes(method, optimizer)
    with folder.locked() if shard.rank == 0 else nullcontext(), room_in_sentences(run_dir, size):
        restored, shared = None, None
        if shard.rank == 0:
            notes = [str(note) for note in notes_of_splits(train_set, val_set)]
            for note in notes:
                logger.warning("%s", note)
            known = {**provenance(device, inputs), "data_notes": notes, "own_code": own_code(config)}
            if resume and folder.has_steps():
                folder.check_same_run(config, inputs, recipe, train_set.class_names, known)
                if not _is_finished(folder):
                    check_room(run_dir, size, config.keep_checkpoints)
                    restored = _continue(folder, config)
            else:
                check_room(run_dir, size, config.keep_checkpoints)
                _say_what_is_replaced(folder, config)
                folder.create(config, recipe, train_set.class_names, known)
            shared = None if prefixes is None else Prefixes(prefixes, config, known)
        done = distributed.from_first(folder.result)
        if done is not None and done["status"] == "finished":
            return Result("finished", done["step"], done["metrics"])
        if restored is None and shared is not None and (restored := shared.begin(folder)) is not None:
            _tell_of_evaluation(observer, folder, restored.step)
        step = distributed.from_first(lambda: None if restored is None else restored.step)
        if step is not None:
            restored = restored or checkpoint.read(folder.checkpoints / checkpoint.folder_name(step))
            checkpoint.restore(restored, method, optimizer)
        # Before signals wait for the end of a step: filling a cache of images may take long.
        train_set.prepare()
        return _run(config, folder, method, optimizer, loader, val_set, restored, shared, observer, progress, started)


def _run(
    config: RunConfig,
    folder: RunFolder,
    method: Method,
    optimizer: torch.optim.Optimizer,
    loader: TrainLoader,
    val_set: Dataset,
    restored: checkpoint.Checkpoint | None,
    shared: Prefixes | None,
    observer: Observer | None,
    progress: bool,
    started: float,
) -> Result:
    """The loop itself."""
    device = config.torch_device()
    shard = distributed.shard()
    first = shard.rank == 0
    if device.type == "cuda":
        # Of this training alone, in a process that may have done others.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    step = restored.step if restored else 0
    train_step = TrainingStep(method, optimizer, config)

    averages = Averages(restored.part("averages") if restored else {})
    before_s = max((row["time_s"] for row in folder.metrics()), default=0.0)
    bar = tqdm(total=config.num_steps, initial=step, unit="step", disable=not (progress and first), dynamic_ncols=True)
    writer = checkpoint.Writer(folder.checkpoints, digest(config), config.keep_checkpoints)
    saved_step = step
    with _stop_signals() as stop, writer, bar, closing(loader.batches(step, config.num_steps - step, stop)) as batches:
        try:
            for batch in batches:
                step_started = time.monotonic()
                last = step + 1 == config.num_steps
                output, gradient_norm = train_step(batch, step)
                averages.add(output, gradient_norm, step, stop.is_set())
                averages.add_time(time.monotonic() - step_started)
                step += 1
                bar.update()
                elapsed_s = before_s + time.monotonic() - started
                # Read once a step: it may be set at any moment. Several ranks stop when all of them know.
                stopping = stop.is_set() if shard.world_size == 1 else averages.stop_was_set
                writer.check()
                due = step % config.evaluate_every == 0 or last

                if step % config.log_every == 0 or last:
                    values = averages.take() | {"train/lr": optimizer.param_groups[0]["lr"]}
                    if first:
                        folder.add_metrics(step, "train", elapsed_s, values)
                    bar.set_postfix(loss=f"{values['train/loss_total']:.3f}")
                if due or stopping:
                    averages.check()
                told: Callable[[Path], None] = _nobody
                if due:
                    # Who is told of the last evaluation may be reading the folder.
                    writer.wait()
                    metrics = evaluate_into(folder, method, val_set, config, step, elapsed_s, progress and first)
                    bar.set_postfix(seg=_percent(metrics, "seg"), cam=_percent(metrics, "cam"))
                    if observer is not None:
                        told = partial(observer.on_evaluation, step, metrics)
                if (due or stopping) and first:
                    writer.start(step, method, optimizer, {"averages": averages.state()}, told, folder.mark())
                    saved_step = step
                if shared is not None and step == shared.step:
                    averages.check()
                    shared.leave(folder, method, optimizer, {"averages": averages.state()})
                if stopping:
                    break
            averages.check()
            if first and step > saved_step:
                # A signal came while the next batch was waited for.
                writer.start(step, method, optimizer, {"averages": averages.state()}, _nobody, folder.mark())
            writer.wait()
        except DivergedError as error:
            # Whoever is told of the last evaluation must not find the end of the run beside it.
            writer.wait()
            if first:
                wall_time_s = before_s + time.monotonic() - started
                folder.finish(_result("diverged", step, config, folder, wall_time_s, str(error)))
            raise
    status = "finished" if step == config.num_steps else "stopped"
    message = None if status == "finished" else f"Stopped by a signal after step {step}; --resume continues."

    def finish() -> dict[str, float]:
        result = _result(status, step, config, folder, before_s + time.monotonic() - started, message)
        folder.finish(result)
        metrics: dict[str, float] = result["metrics"]
        return metrics

    return Result(status, step, distributed.from_first(finish))


def method_of(saved: checkpoint.Checkpoint, config: RunConfig, num_foreground_classes: int) -> Method:
    """The method that a checkpoint holds, on the run's device.

    Raises:
        CheckpointError: It holds a method of another config.
    """
    # The checkpoint holds the backbone, so pretrained weights need not be there any more.
    config_without_weights = config.model_copy(
        update={"backbone": config.backbone.model_copy(update={"weights": None})}
    )
    method = build_method(config_without_weights, num_foreground_classes)
    checkpoint.load_model(saved, method)
    return method.to(config.torch_device())


def open_data(config: RunConfig) -> tuple[Dataset, Dataset]:
    """The training and the validation split.

    Raises:
        ValueError: The data is missing or wrong, or an image is in both splits and ``data.allow_overlap`` is not set.
    """
    module = load("toco.data", config.data.name)
    train_set, val_set = module.open_split(config.data, "train"), module.open_split(config.data, "val")
    refuse_overlap(train_set, val_set, config.data.allow_overlap)
    return train_set, val_set


def build_method(config: RunConfig, num_foreground_classes: int) -> Method:
    """Backbone and method with the run's seed and precision."""
    torch.manual_seed(config.seed)
    backbone = load("toco.backbones", config.backbone.name).build(config.backbone)
    method: Method = load("toco.methods", config.method.name).build(config.method, backbone, num_foreground_classes)
    method.autocast_dtype = torch.bfloat16 if config.precision == "bfloat16" else None
    return method


def weights_sha256(config: RunConfig) -> str | None:
    """Hash of the file the backbone's weights are read from, if they come from a file."""
    path = load("toco.backbones", config.backbone.name).weights_path(config.backbone)
    return None if path is None else sha256(path)


def _is_finished(folder: RunFolder) -> bool:
    result = folder.result()
    if result is None or result["status"] != "finished":
        return False
    if (fault := folder.fault_of_rows()) is not None:
        # The result carries its own digest: nobody's days of training are worth a point of a curve.
        logger.warning("%s The run has ended and its result stands; its curves lack what is damaged.", fault)
    return True


def _continue(folder: RunFolder, config: RunConfig) -> checkpoint.Checkpoint | None:
    """The newest checkpoint that is whole, with its rows; what came after it is forgotten.

    Raises:
        ValueError: A version made the run that recorded no digests.
        CheckpointError: The checkpoint is of another run.
    """
    if folder.is_unsealed():
        raise ValueError(
            f"{printable(folder.path)} holds an unfinished run of toco 0.4 or before, whose files carry no digests: "
            "whether its rows are whole cannot be known. Use it as it is, or train again in another folder."
        )
    found = folder.newest()
    if found is None:
        logger.warning("%s holds no whole checkpoint; the training begins anew.", printable(folder.path))
        folder.forget_after(0, ())
        return None
    restored, rows = found
    if restored.digest != digest(config):
        raise checkpoint.CheckpointError(
            f"{printable(folder.checkpoints / checkpoint.folder_name(restored.step))} is a checkpoint of another run: "
            f"its config has the digest {restored.digest}, this run's {digest(config)}. Move it out of the folder."
        )
    folder.forget_after(restored.step, rows)
    return restored


def _say_what_is_replaced(folder: RunFolder, config: RunConfig) -> None:
    """Say that a run which made no step, such as one that failed at its start, gives way to another."""
    if not folder.exists() or folder.has_steps():
        return
    try:
        is_same = folder.digest() == digest(config)
    except ValueError:
        is_same = False
    if not is_same:
        logger.warning("%s holds a run of another config that made no step; it is replaced.", printable(folder.path))


def _tell_of_evaluation(observer: Observer | None, folder: RunFolder, step: int) -> None:
    """Tell of the evaluation after ``step``, which another training made, if there was one."""
    for row in folder.metrics():
        if observer is not None and (row["kind"], row["step"]) == ("val", step):
            observer.on_evaluation(step, row["values"], folder.checkpoints / checkpoint.folder_name(step))


def evaluate_into(
    folder: RunFolder,
    method: Method,
    val_set: Dataset,
    config: RunConfig,
    step: int,
    time_s: float,
    progress: bool = False,
) -> dict[str, float]:
    """Evaluate ``method`` as it is after ``step`` updates, keep what was found in ``folder``, and return the metrics.

    Several ranks do it together, and the first keeps it.

    Args:
        folder: The run folder.
        method: The method, on the run's device.
        val_set: The validation split.
        config: The run.
        step: Optimizer updates so far.
        time_s: Seconds since the start of the run.
        progress: Show a bar.
    """
    from toco.evaluate.pictures import save_panels  # matplotlib

    shard = distributed.shard()
    device = config.torch_device()
    evaluation = evaluate(method, val_set, config.evaluate, device, progress=progress, step=step, shard=shard)
    if shard.rank == 0:
        folder.add_evaluation(step, evaluation, config.evaluate.average_last)
        threshold = config.evaluate.background_threshold
        save_panels(evaluation.pictures, evaluation.class_names, threshold, folder.pictures(step))
        folder.add_metrics(step, "val", time_s, evaluation.metrics)
    return evaluation.metrics


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one acts as usual.

    Only the main thread may handle signals; a run in another thread is stopped by whoever started it.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _frame: object) -> None:
        stop.set()
        interrupts.record(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _result(
    status: str,
    step: int,
    config: RunConfig,
    folder: RunFolder,
    wall_time_s: float,
    message: str | None,
) -> dict[str, Any]:
    rows = folder.metrics()
    step_times_s = [row["values"]["train/step_time_s"] for row in rows if row["kind"] == "train"]
    return {
        "status": status,
        "step": step,
        "digest": digest(config),
        **averaged(rows, config.evaluate.average_last),
        "message": message,
        "step_time_s": sum(step_times_s) / len(step_times_s) if step_times_s else None,
        "wall_time_s": round(wall_time_s, 3),
        "peak_memory_bytes": peak_memory_bytes(config.torch_device()),
    }


def averaged(rows: Sequence[Mapping[str, Any]], average_last: int) -> dict[str, Any]:
    """What the rows of ``metrics.jsonl`` say of a run's evaluations, for ``result.json``."""
    evaluations = [row["values"] for row in rows if row["kind"] == "val"]
    last = evaluations[-average_last:]
    return {
        "metrics": {name: sum(row[name] for row in last) / len(last) for name in (last[-1] if last else {})},
        "last_metrics": evaluations[-1] if evaluations else {},
        "averaged_evaluations": len(last),
    }


def _nobody(_: Path) -> None:
    """Nobody is told of a checkpoint."""


def _percent(metrics: dict[str, float], what: str) -> str:
    miou = metrics.get(f"val/{what}_miou")
    return "-" if miou is None else f"{100 * miou:.1f}"
