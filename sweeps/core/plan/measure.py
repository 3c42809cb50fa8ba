"""Time a few real steps of trainings and a short evaluation: the process of ``plan.probe``.

A method computes fewer loss terms early in a training than late, so steps are timed in every phase.
A binary search finds the steps where the terms change.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Set
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from sweeps.core.plan.probe import COSTS, COSTS_MODEL, REQUEST, Cost, Phase, evaluations
from toco.config import digest
from toco.data import Dataset
from toco.data.loading.loader import TrainLoader
from toco.evaluate import EvaluateConfig, Evaluation
from toco.evaluate.evaluator import evaluate
from toco.evaluate.pictures import save_panels
from toco.files import read_json, write_text
from toco.methods import Method
from toco.processes import end_with_parent
from toco.train import checkpoint
from toco.train.inputs import digest_inputs, open_data
from toco.train.optim import build_optimizer
from toco.train.parts import build_loader, build_method
from toco.train.provenance import provenance
from toco.train.run_config import RunConfig
from toco.train.run_folder import RunFolder
from toco.train.step import TrainingStep, peak_memory_bytes

SAMPLES = 3
"""Timed steps of every phase, at least: the fewest whose median ignores one disturbed step."""
PRECISION = 0.01
"""Error of a phase's first step, as a fraction of the training: well below ``SPREAD``."""
EVALUATED_BATCHES = 3
"""Batches of the timed evaluation: few, because a user waits, and yet a mean."""


def measure(config: RunConfig, started: float, like: Cost | None = None) -> Cost:
    """Time a few steps of ``config`` in this process, and one evaluation.

    The evaluation is not timed again if that of ``like`` is the same.

    Args:
        config: The training.
        started: When this process was started, in seconds since the epoch.
        like: The first measurement of this process.

    Raises:
        ValueError: The config does not fit this machine, or data or weights are missing.
    """
    # Build the training as a trial does.
    config = config.resolved()
    device = config.torch_device()
    train_set, val_set = open_data(config)
    inputs = digest_inputs(config, train_set, val_set)
    method = build_method(config, len(train_set.class_names)).to(device)
    steps = _Steps(config, method, build_loader(config, train_set))
    setup_s = time.time() - started
    # Time its steps.
    phases = steps.phases()
    # Time its evaluation and checkpoint.
    if like is not None and _same_evaluation(like.config, config):
        setup_s, evaluation_s = like.setup_s, like.evaluation_s
        checkpoint_bytes, run_bytes = like.checkpoint_bytes, like.run_bytes
    else:
        evaluation_s = _evaluation_s(config.evaluate, method, val_set, device)
        checkpoint_s, checkpoint_bytes, evaluation_bytes = _stored(
            config, method, steps.optimizer, val_set, device
        )
        evaluation_s += checkpoint_s
        number = evaluations(config, config.num_steps)
        run_bytes = (
            min(config.keep_checkpoints, number) * checkpoint_bytes + number * evaluation_bytes
        )
    return Cost(
        config=config,
        device=provenance(device, inputs)["device"],
        phases=phases,
        evaluation_s=evaluation_s,
        setup_s=setup_s,
        peak_memory_bytes=peak_memory_bytes(device),
        checkpoint_bytes=checkpoint_bytes,
        run_bytes=run_bytes,
    )


def changes_of_terms(terms_at: Callable[[int], Set[str]], num_steps: int) -> list[int]:
    """Return the first step of every phase but the first.

    Terms that come and go between two inspected steps are missed. The first, middle and last step
    are always inspected.
    """
    apart = max(int(PRECISION * num_steps), 1)

    def split(low: int, high: int) -> list[int]:
        if terms_at(low) == terms_at(high):
            return []
        if high - low <= apart:
            return [high]
        middle = (low + high) // 2
        return split(low, middle) + split(middle, high)

    middle, last = (num_steps - 1) // 2, num_steps - 1
    return split(0, middle) + split(middle, last)


class _Steps:
    """Take real steps of a training, in any order, and store their loss terms and times."""

    def __init__(self, config: RunConfig, method: Method, loader: TrainLoader) -> None:
        self.optimizer = build_optimizer(method, config.optim)
        self._train_step = TrainingStep(method, self.optimizer, config)
        self._num_steps = config.num_steps
        self._device = config.torch_device()
        # One stream for all steps: loader processes start once, and have batches ready as in a
        # training.
        self._batches = loader.batches(start_step=0, num_steps=sys.maxsize)
        self._terms: dict[int, Set[str]] = {}
        self._times_s: list[tuple[int, float]] = []

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases with the median time of their steps."""
        end = self._num_steps
        # Warm up: the first steps allocate memory and start threads, which a training does once.
        for step in (0, end - 1):
            self._take(step)
        self._times_s.clear()
        bounds = [0, *changes_of_terms(self._terms_at, end), end]
        return tuple(
            Phase(start, stop, self._step_s(start, stop)) for start, stop in pairwise(bounds)
        )

    def _step_s(self, start: int, stop: int) -> float:
        for number in range(SAMPLES - len(self._within(start, stop))):
            self._take(start + (stop - start) * number // SAMPLES)
        return statistics.median(self._within(start, stop))

    def _within(self, start: int, stop: int) -> list[float]:
        return [time_s for step, time_s in self._times_s if start <= step < stop]

    def _terms_at(self, step: int) -> Set[str]:
        if step not in self._terms:
            self._take(step)
        return self._terms[step]

    def _take(self, step: int) -> None:
        started = time.perf_counter()
        output, _ = self._train_step(next(self._batches), step)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._times_s.append((step, time.perf_counter() - started))
        self._terms[step] = frozenset(output.weights)


def _evaluation_s(
    settings: EvaluateConfig, method: Method, val_set: Dataset, device: torch.device
) -> float:
    """Estimate the seconds of one evaluation from a few batches and one picture."""

    def timed(images: int, pictures: int) -> float:
        started = time.perf_counter()
        _evaluated(settings, method, val_set, device, images, pictures)
        return time.perf_counter() - started

    total = min(len(val_set), settings.max_images or len(val_set))
    num_images = min(total, EVALUATED_BATCHES * settings.batch_size)
    pictures = min(settings.num_pictures, total)
    timed(min(num_images, settings.batch_size), 1)
    picture_s = max(timed(1, 1) - timed(1, 0), 0.0) if pictures else 0.0
    return timed(num_images, 0) * total / num_images + picture_s * pictures


def _stored(
    config: RunConfig,
    method: Method,
    optimizer: torch.optim.Optimizer,
    val_set: Dataset,
    device: torch.device,
) -> tuple[float, int, int]:
    """Measure a checkpoint and the files of an evaluation.

    Returns:
        The seconds to write a checkpoint, its bytes, and the bytes that one evaluation adds to the
        run folder.
    """
    pictures = min(config.evaluate.num_pictures, len(val_set))
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        started = time.perf_counter()
        saved = checkpoint.save(
            folder.checkpoints, config.num_steps, digest(config), method, optimizer, {}
        )
        checkpoint_s = time.perf_counter() - started
        evaluation = _evaluated(
            config.evaluate, method, val_set, device, 1, min(pictures, 1), Path(scratch, "pictures")
        )
        folder.add_evaluation(config.num_steps, evaluation, config.evaluate.average_last)
        picture_bytes = _bytes(Path(scratch, "pictures"))
        return (
            checkpoint_s,
            _bytes(saved),
            _bytes(Path(scratch, "evaluations")) + picture_bytes * pictures,
        )


def _evaluated(
    settings: EvaluateConfig,
    method: Method,
    val_set: Dataset,
    device: torch.device,
    images: int,
    pictures: int,
    drawn_to: Path | None = None,
) -> Evaluation:
    short_settings = settings.model_copy(update={"max_images": images, "num_pictures": pictures})
    evaluation = evaluate(method, val_set, short_settings, device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = drawn_to or Path(scratch)
        folder.mkdir(exist_ok=True)
        save_panels(
            evaluation.pictures, evaluation.class_names, settings.background_threshold, folder
        )
    return evaluation


def _same_evaluation(first: RunConfig, second: RunConfig) -> bool:
    shared = (
        "data",
        "backbone",
        "evaluate",
        "num_steps",
        "evaluate_every",
        "keep_checkpoints",
        "device",
        "precision",
    )
    # A checkpoint holds the optimizer's moments, but none of frozen layers.
    return all(getattr(first, name) == getattr(second, name) for name in shared) and (
        first.optim.frozen_layers,
        first.optim.num_moments(),
    ) == (second.optim.frozen_layers, second.optim.num_moments())


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _costs(request: Mapping[str, Any]) -> Iterator[Cost]:
    first = None
    for config in map(RunConfig.model_validate, request["configs"]):
        if first is not None and time.time() - request["started"] > request["budget_s"]:
            return
        cost = measure(config, request["started"], first)
        first = first or cost
        yield cost


def main(folder: Path) -> None:
    """Answer the request in ``folder``."""
    end_with_parent()
    request = read_json(folder / REQUEST)
    torch.set_num_threads(request["num_threads"])
    write_text(
        folder / COSTS, COSTS_MODEL.dump_json(tuple(_costs(request))).decode(), durable=False
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
