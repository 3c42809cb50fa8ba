"""Time start, log, MLflow and checkpoints of a training, and the gain of several at once.

    python -m benchmarks overhead --out benchmarks/results/overhead.json

Trainings are those of the recipe ``shapes_nano``. Checkpoints are also measured with the state of
DeiT-B on VOC.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier
from typing import Any
from unittest.mock import patch

import click
import torch
from torch import Tensor

from benchmarks._frame import benchmark
from benchmarks._record import measure, synchronise
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study
from sweeps.core.plan.launch_options import Launch
from sweeps.core.run.start import run_study
from toco.config import replace
from toco.methods.toco import ToCo
from toco.recipes import shapes_nano, voc_deit_b
from toco.tensors import StepOutput
from toco.tracking import import_mlflow, open_store, track_run
from toco.train import checkpoint, loop
from toco.train.averages import Averages
from toco.train.inputs import open_data
from toco.train.optim import build_optimizer, fill_missing_gradients
from toco.train.parts import build_loader, build_method
from toco.train.run_config import RunConfig
from toco.train.run_folder import RunFolder
from toco.train.step import TrainingStep

MOMENTS = "TOCO_BENCHMARK_MOMENTS"
"""Environment variable with the file to which trainings write the times of their events."""
SHORT = {"num_steps": 4, "evaluate_every": 4, "optim.warmup_steps": 0, "evaluate.max_images": 20}
"""Changes that make a training short: only its start is timed, or its copy in MLflow."""
SHAPES_CLASSES, VOC_CLASSES = 8, 20
_LONGEST_S = 300.0
"""Longest wait for all processes to reach their first timed step: minutes on a slow machine."""


def build_step(config: RunConfig, num_threads: int) -> Callable[[], tuple[StepOutput, Tensor]]:
    """Build a function that repeats the last step of a training, in which all terms count."""
    torch.set_num_threads(num_threads)
    config = config.resolved()
    train_set, _ = open_data(config)
    method = build_method(config, len(train_set.class_names)).to(config.device)
    train_step = TrainingStep(method, build_optimizer(method, config.optim), config)
    batches = itertools.cycle(
        list(build_loader(config, train_set).batches(start_step=0, num_steps=4))
    )
    return lambda: train_step(next(batches), config.num_steps - 1)


def train_recording_times(config: RunConfig, run_dir: Path, **options: Any) -> loop.Result:  # noqa: ANN401
    """Train, and record the times of the call, of the start of each step, and of the return."""
    training_losses = ToCo.training_losses

    def recording_losses(*arguments: Any) -> StepOutput:  # noqa: ANN401 - as training_losses
        _record_event("step")
        return training_losses(*arguments)

    _record_event("call")
    with patch.object(ToCo, "training_losses", recording_losses):
        result = loop.train(config, run_dir, **options)
    _record_event("return")
    return result


def _record_event(event: str) -> None:
    # time.time, not perf_counter: only the wall clock is the same in all processes of a machine.
    with Path(os.environ[MOMENTS]).open("a") as file:
        file.write(f"{os.getpid()} {event} {time.time()}\n")


def _seconds_to_step(after: str, train: Callable[[Path], None]) -> list[float]:
    """Measure the seconds from each event ``after`` to the next step in the same process.

    Args:
        after: ``call`` or ``return``.
        train: Runs trainings of :func:`train_recording_times` in a folder.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "moments")
        with patch.dict(os.environ, {MOMENTS: str(file)}):
            train(Path(scratch))
        start_times: dict[str, float] = {}
        seconds = []
        for process, event, moment in map(str.split, file.read_text().splitlines()):
            if event == after:
                start_times[process] = float(moment)
            elif event == "step" and process in start_times:
                seconds.append(float(moment) - start_times.pop(process))
    return seconds


def starts_in_a_process(times: int, device: str) -> list[float]:
    """Measure the seconds from a training's call to its first step, after one warm-up training."""

    def train(folder: Path) -> None:
        for seed in range(times + 1):
            config = replace(shapes_nano.recipe(), {**SHORT, "device": device, "seed": seed})
            train_recording_times(config, folder / str(seed), progress=False)

    return _seconds_to_step("call", train)[1:]


def starts_in_a_worker(times: int, device: str) -> list[float]:
    """Measure the seconds from a training's end to the next one's first step in a Ray worker.

    These seconds include two events: the worker reports the last checkpoint, and the driver stores
    the result in the ledger.
    """
    study = Study(
        name="overhead",
        title="Short trainings",
        recipe="shapes_nano",
        design=OneFactor((Factor("method.aux_block", (9,)),)),
        seeds=tuple(range(times + 1)),
        metrics=(Metric("val/cam_miou", "M"),),
        changes={**SHORT, "device": device},
        purpose="direction",
        repeat_base=False,
        train=f"{__name__}:train_recording_times",
    )

    def train(folder: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            status = run_study(study, Launch(folder / "results", address="local", concurrent=1))
        if status:
            raise click.ClickException(f"The study of short trainings ended with status {status}.")

    return _seconds_to_step("return", train)


def log_seconds(config: RunConfig, steps: int, times: int) -> dict[str, float]:
    """Measure the seconds that the log adds to a step, and those of the step."""
    train_step, device = build_step(config, 1), config.torch_device()
    step_s = statistics.median(measure({"step": train_step}, times, device)["step"])
    output, gradient_norm = train_step()
    with tempfile.TemporaryDirectory() as scratch:
        folder, averages = RunFolder(Path(scratch)), Averages({})

        def log() -> None:
            for step in range(steps):
                averages.add(output, gradient_norm, step, False)
                averages.add_time(step_s)
                if (step + 1) % config.log_every == 0:
                    folder.add_metrics(step, "train", 0.0, averages.take())

        log_s = statistics.median(measure({"log": log}, times, device)["log"]) / steps
    return {"step_s": step_s, "log_s": log_s, "share": log_s / step_s}


def mirror_seconds(config: RunConfig) -> dict[str, float]:
    """Measure the seconds to send a finished training to MLflow.

    Returns:
        ``first_s``: to a database that does not exist yet; ``again_s``: to one with this training.
    """
    import_mlflow()
    with tempfile.TemporaryDirectory() as scratch:
        loop.train(config, Path(scratch) / "run", progress=False)

        def send() -> None:
            track_run(
                Path(scratch) / "run", open_store(f"sqlite:///{scratch}/mlflow.db", "overhead")
            )

        started = time.perf_counter()
        send()
        return {
            "first_s": time.perf_counter() - started,
            "again_s": measure({"send": send}, 3, "cpu")["send"][0],
        }


def stall_seconds(config: RunConfig, num_foreground_classes: int, times: int) -> dict[str, float]:
    """Measure how long a training waits for a checkpoint, with a writing thread and without one.

    Returns:
        The seconds, the bytes of the checkpoint, and the time of a step from which on the writing
        thread costs less than 1 % of the training.
    """
    device = config.torch_device()
    method = build_method(config, num_foreground_classes).to(device)
    optimizer = build_optimizer(method, config.optim)
    # One update with zero gradients: it makes the optimizer's state, which checkpoints contain.
    fill_missing_gradients(optimizer)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with checkpoint.Writer(folder / "beside", "digest", keep=1) as writer:
            stalls = []
            for step in range(times + 1):
                synchronise(device)
                started = time.perf_counter()
                writer.start(step, method, optimizer, {}, then=lambda path: None)
                stalls.append(time.perf_counter() - started)
                # Not timed: the file is complete before the next checkpoint begins.
                writer.wait()

        def save() -> None:
            path = checkpoint.save(folder / "at once", 1, "digest", method, optimizer, {})
            checkpoint.prune(path.parent, 1)

        at_once_s = statistics.median(measure({"save": save}, times, device)["save"])
        (written,) = (folder / "beside").iterdir()
        size = sum(path.stat().st_size for path in written.iterdir())
    # The first checkpoint also allocates the memory for the copies.
    stall_s = statistics.median(stalls[1:])
    return {
        "bytes": size,
        "first_stall_s": stalls[0],
        "stall_s": stall_s,
        "stall_written_at_once_s": at_once_s,
        "steps_between": config.evaluate_every,
        "step_s_from_which_it_is_below_1_percent": stall_s / (0.01 * config.evaluate_every),
    }


def packing(
    config: RunConfig, steps: int, trainings: int, threads: int, times: int
) -> dict[str, Any]:
    """Compare one training with all threads to several that share them, in images per second."""
    context = get_context("spawn")

    def rate(number: int, num_threads: int) -> float:
        with (
            context.Manager() as manager,
            ProcessPoolExecutor(number, mp_context=context) as processes,
        ):
            begin = manager.Barrier(number)
            work = [
                processes.submit(_take_steps, config, steps, num_threads, begin)
                for _ in range(number)
            ]
            starts, ends = zip(*(task.result() for task in work), strict=True)
        return float(number * config.batch_size * steps / (max(ends) - min(starts)))

    turns = [
        (rate(1, threads), rate(trainings, max(threads // trainings, 1))) for _ in range(times)
    ]
    alone, together = (statistics.median(rates) for rates in zip(*turns, strict=True))
    return {
        "trainings": trainings,
        "threads_of_one": threads,
        "threads_of_each": max(threads // trainings, 1),
        "images_per_s_of_one": alone,
        "images_per_s_of_all": together,
        "gain": together / alone,
    }


def _take_steps(
    config: RunConfig, steps: int, num_threads: int, begin: Barrier
) -> tuple[float, float]:
    """Take steps together with other processes; return start and end of this process's steps."""
    train_step, device = build_step(config, num_threads), config.torch_device()
    for _ in range(3):
        train_step()
    synchronise(device)
    begin.wait(timeout=_LONGEST_S)
    # The wall clock: the caller compares the times of several processes.
    started = time.time()
    for _ in range(steps):
        train_step()
    synchronise(device)
    return started, time.time()


@benchmark(times=5, device="auto")
@click.option(
    "--steps", default=20, show_default=True, help="Timed steps of each of the trainings at once."
)
@click.option("--trainings", default=2, show_default=True, help="Trainings at once.")
@click.option(
    "--threads", default=2, show_default=True, help="CPU threads of all trainings together."
)
@click.option("--ray/--no-ray", default=True, help="Also measure starts in a reused Ray worker.")
@click.option(
    "--voc/--no-voc",
    default=True,
    help="Also measure checkpoints of DeiT-B on VOC; takes 3.6 GB of disk for a while.",
)
def overhead(
    device: str, times: int, steps: int, trainings: int, threads: int, ray: bool, voc: bool
) -> dict[str, Any]:
    """Measure start, log, MLflow and checkpoints of a training, and several trainings at once."""
    # One thread, as each training of a packed machine has. ``packing`` sets its own numbers.
    torch.set_num_threads(1)
    config = replace(shapes_nano.recipe(), {"device": device})
    starts = {"in_a_process_s": starts_in_a_process(times, device)}
    if ray:
        starts["in_a_ray_worker_s"] = starts_in_a_worker(times, device)
    checkpoints = {"shapes_nano": stall_seconds(config, SHAPES_CLASSES, times)}
    if voc:
        large = replace(voc_deit_b.recipe(), {"device": device, "backbone.weights": None})
        checkpoints["voc_deit_b"] = stall_seconds(large, VOC_CLASSES, times)
    return {
        "device": str(config.torch_device()),
        "start": starts,
        "log": log_seconds(config, 10 * config.log_every, times),
        "mlflow": mirror_seconds(replace(config, SHORT)),
        "checkpoint": checkpoints,
        "packing": packing(config, steps, trainings, threads, times),
    }
