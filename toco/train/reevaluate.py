"""Another evaluation of a finished training, without training again.

Where only the thresholds differ, the counts that the evaluations left hold every other threshold of their curve, and
the network is not needed. Otherwise the kept checkpoints are evaluated.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from toco.config import digest
from toco.evaluate import can_rescore, read_confusions, rescore
from toco.train import checkpoint
from toco.train.loop import Result, averaged, evaluate_into, method_of, open_data
from toco.train.run_config import RunConfig
from toco.train.run_folder import RunFolder, provenance

_THRESHOLDS = ("background_threshold", "curve_stop", "curve_step")


def reevaluate(source: Path, target: Path, config: RunConfig, *, recipe: str | None = None) -> Result:
    """Make ``target`` the run folder that a training of ``config`` would have left, but for its checkpoints.

    It has the training rows of ``source`` and those evaluations that the result is the mean of; with other thresholds
    alone it has neither pictures nor confusion matrices. ``target`` appears when it is complete.

    Args:
        source: The run folder of a finished training that differs from ``config`` in ``evaluate`` only.
        target: The folder to make.
        config: The run whose result is wanted.
        recipe: Name of the recipe that ``config`` came from, for the record.

    Raises:
        ValueError: ``source`` is not finished, is of another training or of other data, or lacks a checkpoint.
        FileExistsError: ``target`` is there.
    """
    started = time.monotonic()
    config = config.resolved()
    trained = RunFolder(source)
    result = trained.result() if trained.exists() else None
    if result is None or result["status"] != "finished":
        raise ValueError(f"{source} holds no finished training; only a finished one can be evaluated in another way.")
    with_its_evaluation = config.model_copy(update={"evaluate": trained.config().evaluate})
    trained.check_same_config(with_its_evaluation)
    if target.exists():
        raise FileExistsError(f"{target} is there already; name a new folder for the evaluation.")

    rows = trained.metrics()
    evaluations = [row for row in rows if row["kind"] == "val"][-config.evaluate.average_last :]
    rescored = _is_counted(trained, config, [row["step"] for row in evaluations])
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        folder = RunFolder(partial)
        evaluate_step, now = (_rescoring if rescored else _evaluating)(trained, folder, config)
        origin = {"of": trained.digest(), "rescored": rescored, "environment": now}
        folder.create(config, recipe, {**trained.provenance(), "reevaluated": origin})
        folder.set_metrics([row for row in rows if row["kind"] != "val"])
        for row in evaluations:
            evaluate_step(row["step"], row["time_s"])
        found = averaged(folder.metrics(), config.evaluate.average_last)
        wall_time_s = round(time.monotonic() - started, 3)
        folder.finish({**result, "digest": digest(config), **found, "wall_time_s": wall_time_s})
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Result("finished", result["step"], found["metrics"])


def is_rescored(source: Path, config: RunConfig) -> bool:
    """Whether :func:`reevaluate` needs no network: only thresholds differ, and all of them were counted."""
    trained = RunFolder(source)
    if not trained.exists():
        return False
    steps = [row["step"] for row in trained.metrics() if row["kind"] == "val"]
    return _is_counted(trained, config, steps[-config.evaluate.average_last :])


_EvaluateStep = Callable[[int, float], object]
"""Makes the evaluation after a step, whose row has a time, in the new folder."""


def _is_counted(trained: RunFolder, config: RunConfig, steps: Sequence[int]) -> bool:
    """Whether ``config`` differs from the run in thresholds only, and the evaluations counted at all of them."""
    was = trained.config().evaluate
    same = {name: getattr(was, name) for name in (*_THRESHOLDS, "average_last")}
    if digest(config.evaluate.model_copy(update=same)) != digest(was):
        return False
    files = [trained.counts(step) for step in steps]
    return all(file.is_file() and can_rescore(read_confusions(file), config.evaluate) for file in files)


def _rescoring(trained: RunFolder, folder: RunFolder, config: RunConfig) -> tuple[_EvaluateStep, None]:
    def evaluate_step(step: int, time_s: float) -> None:
        counted = read_confusions(trained.counts(step))
        evaluation = rescore(trained.evaluation(step), counted, config.evaluate)
        folder.add_evaluation(step, evaluation, config.evaluate.average_last)
        folder.add_metrics(step, "val", time_s, evaluation.metrics)

    return evaluate_step, None


def _evaluating(trained: RunFolder, folder: RunFolder, config: RunConfig) -> tuple[_EvaluateStep, dict[str, Any]]:
    _, val_set = open_data(config)
    inputs = trained.inputs()
    if val_set.manifest_digest() != inputs.val_data:
        raise ValueError(
            f"{trained.path} was evaluated on other validation data than data.root holds now; give it the same data."
        )

    def evaluate_step(step: int, time_s: float) -> None:
        path = trained.checkpoints / checkpoint.folder_name(step)
        if not path.is_dir():
            raise ValueError(
                f"{trained.path} keeps no checkpoint of step {step}, whose evaluation is part of the result. Train it "
                f"again with keep_checkpoints={config.evaluate.average_last} or more, or set evaluate.average_last "
                "to the number of checkpoints that are there."
            )
        method = method_of(checkpoint.read(path), config, len(val_set.class_names))
        evaluate_into(folder, method, val_set, config, step, time_s)

    return evaluate_step, provenance(config.torch_device(), inputs)
