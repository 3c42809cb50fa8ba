"""Another evaluation of a finished training, without training again.

Where only the thresholds differ, the counts that the evaluations left hold every other threshold of
their curve, and the network is not needed. Otherwise the kept checkpoints are evaluated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toco.config import digest
from toco.evaluate import Confusions, read_confusions
from toco.files import UnreadableError, printable, whole_folder
from toco.train import checkpoint
from toco.train.inputs import open_data
from toco.train.records import METRICS, Row, averaged
from toco.train.run_config import RunConfig
from toco.train.run_folder import RunFolder

if TYPE_CHECKING:
    # Imported where something is evaluated: who asks for the ways needs no torch.
    from toco.train.loop import Result

Way = Literal["rescore", "evaluate"]
"""From what the evaluations counted, without the network, or from the checkpoints."""
_THRESHOLDS = ("background_threshold", "curve_stop", "curve_step")


def reevaluate(
    source: Path, target: Path, config: RunConfig, way: Way, *, recipe: str | None = None
) -> Result:
    """Make ``target`` the run folder that a training of ``config`` would have left, but for its checkpoints.

    It has the training rows of ``source`` and those evaluations that the result is the mean of;
    rescored, it has neither pictures nor confusion matrices. ``target`` appears when it is
    complete.

    Args:
        source: The run folder of a finished training that differs from ``config`` in ``evaluate``
            only.
        target: The folder to make.
        config: The run whose result is wanted.
        way: See :func:`way_from`.
        recipe: Name of the recipe that ``config`` came from, for the record.

    Raises:
        ValueError: ``source`` is not finished, is of another training or of other data, or lacks
            what ``way`` needs.
        FileExistsError: ``target`` is there.
    """
    from toco.train.loop import Result

    started = time.monotonic()
    trained = RunFolder(source)
    result = trained.result() if trained.exists() else None
    if result is None or result["status"] != "finished":
        raise ValueError(
            f"{source} holds no finished training; only a finished one can be evaluated in another way."
        )
    config = _as_trained(config, trained, way)
    if target.exists():
        raise FileExistsError(f"{target} is there already; name a new folder for the evaluation.")

    rows = trained.metrics()
    evaluations = _averaged_rows(trained, rows, result, config)
    with whole_folder(target) as partial:
        folder = RunFolder(partial)
        evaluate_step, now = (_rescoring if way == "rescore" else _evaluating)(
            trained, folder, config
        )
        origin = {
            "of": trained.digest(),
            "run": source.name,
            "rescored": way == "rescore",
            "environment": now,
        }
        folder.create(
            config, recipe, trained.class_names(), {**trained.provenance(), "reevaluated": origin}
        )
        folder.set_metrics([row for row in rows if row["kind"] != "val"])
        for row in evaluations:
            evaluate_step(row["step"], row["time_s"])
        found = averaged(folder.metrics(), config.evaluate.average_last)
        wall_time_s = round(time.monotonic() - started, 3)
        folder.finish({**result, "digest": digest(config), **found, "wall_time_s": wall_time_s})
    return Result("finished", result["step"], found["metrics"])


def way_from(source: Path, config: RunConfig, *, same_code: bool) -> Way | None:
    """How :func:`reevaluate` can make a run of ``config`` from ``source``; ``None`` where it has to be trained.

    Args:
        source: A run folder, which need not be there or whole.
        config: The run whose result is wanted.
        same_code: Whether the evaluations of ``source`` were made by the code that is here now:
            what other code counted is not what this one would count.
    """
    trained = RunFolder(source)
    try:
        result = trained.result() if trained.exists() else None
        if result is None or result["status"] != "finished":
            return None
        was = trained.config()
        _as_trained(config, trained, "rescore")
        steps = [row["step"] for row in _averaged_rows(trained, trained.metrics(), result, config)]
    except (OSError, ValueError, KeyError):
        return None
    if (
        same_code
        and _is_same_pass(was, config)
        and all(_is_counted(trained, config, step) for step in steps)
    ):
        return "rescore"
    kept = [trained.checkpoints / checkpoint.folder_name(step) for step in steps]
    whole = all(
        (path / name).is_file() for path in kept for name in (checkpoint.STATE, checkpoint.TENSORS)
    )
    return "evaluate" if steps and whole else None


def way_expected(trained: RunConfig, config: RunConfig, checkpoints: int) -> Way | None:
    """What :func:`way_from` will say of a training that is still to be done, of which so many checkpoints will be kept.

    ``config`` has to differ from ``trained`` in ``evaluate`` only.
    """
    was, wanted = trained.evaluate, config.evaluate
    counted = wanted.average_last <= was.average_last and set(wanted.thresholds()) <= set(
        was.thresholds()
    )
    if counted and _is_same_pass(trained, config):
        return "rescore"
    needed = min(wanted.average_last, math.ceil(trained.num_steps / trained.evaluate_every))
    return "evaluate" if needed <= checkpoints else None


_EvaluateStep = Callable[[int, float], object]
"""Makes the evaluation after a step, whose row has a time, in the new folder."""


def _as_trained(config: RunConfig, trained: RunFolder, way: Way) -> RunConfig:
    """``config`` with the choices that were made where it was trained, which may have been another machine.

    Raises:
        ValueError: It was another training.
    """
    was = trained.config()
    method = config.method.resolved(was.device.partition(":")[0], config.views.crop_size_px)
    device = was.device if way == "rescore" else str(config.torch_device())
    config = config.model_copy(update={"method": method, "device": device})
    trained.check_same_config(config.model_copy(update={"evaluate": was.evaluate}))
    return config


def _averaged_rows(
    trained: RunFolder, rows: Sequence[Row], result: Mapping[str, Any], config: RunConfig
) -> list[Row]:
    """Rows of those evaluations that the result of ``config`` is the mean of.

    Raises:
        UnreadableError: The last evaluation is not among ``rows``.
    """
    evaluations = [row for row in rows if row["kind"] == "val"]
    if not evaluations or evaluations[-1]["step"] != result["step"]:
        raise UnreadableError(
            f"{printable(trained.path / METRICS)} lacks the evaluation after step {result['step']}, with which the "
            "training ended. Restore the file from a copy, or train again."
        )
    return evaluations[-config.evaluate.average_last :]


def _is_same_pass(was: RunConfig, config: RunConfig) -> bool:
    """Whether the evaluations differ at most in thresholds and in how many of them are averaged."""
    same = {name: getattr(was.evaluate, name) for name in (*_THRESHOLDS, "average_last")}
    return digest(config.evaluate.model_copy(update=same)) == digest(was.evaluate)


def _is_counted(trained: RunFolder, config: RunConfig, step: int) -> bool:
    """Whether the evaluation after ``step`` counted at all thresholds of ``config``."""
    file = trained.counts(step)
    try:
        return _counts(file, file.stat().st_mtime_ns).have(config.evaluate.thresholds())
    except (OSError, ValueError):
        return False


# The thresholds of a study are asked for one after the other, each of the same few files.
@lru_cache(maxsize=8)
def _counts(file: Path, modified_ns: int) -> Confusions:
    return read_confusions(file)


def _rescoring(
    trained: RunFolder, folder: RunFolder, config: RunConfig
) -> tuple[_EvaluateStep, None]:
    from toco.evaluate.evaluator import rescore

    def evaluate_step(step: int, time_s: float) -> None:
        counted = read_confusions(trained.counts(step))
        evaluation = rescore(trained.evaluation(step), counted, config.evaluate)
        folder.add_evaluation(step, evaluation, config.evaluate.average_last)
        folder.add_metrics(step, "val", time_s, evaluation.metrics)

    return evaluate_step, None


def _evaluating(
    trained: RunFolder, folder: RunFolder, config: RunConfig
) -> tuple[_EvaluateStep, dict[str, Any]]:
    from toco.train.loop import evaluate_into
    from toco.train.parts import method_of
    from toco.train.provenance import provenance

    _, val_set = open_data(config)
    inputs = trained.inputs()
    if inputs is None or val_set.manifest_digest() != inputs.val_data:
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
