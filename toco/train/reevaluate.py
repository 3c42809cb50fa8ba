"""Evaluate a finished training with other settings, without training again.

Where only the thresholds differ, the network is not needed: the stored counts of an evaluation hold
every threshold of its curve. Otherwise the stored checkpoints are evaluated.
"""

from __future__ import annotations

import math
import threading
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
    # The functions that evaluate import it, as ``way_from`` and ``way_expected`` need no torch.
    from toco.train.loop import Result

Way = Literal["rescore", "evaluate"]
"""``rescore``: from the stored counts, without the network; ``evaluate``: from checkpoints."""
_THRESHOLDS = ("background_threshold", "curve_stop", "curve_step")
"""Fields of ``evaluate`` that choose thresholds."""


def reevaluate(
    source: Path,
    target: Path,
    config: RunConfig,
    way: Way,
    *,
    recipe: str | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Make the run folder of ``config`` from ``source``, a training with other evaluations.

    ``target`` gets the training rows of ``source`` and the evaluations over which its result is
    the mean, but no checkpoints. After ``rescore`` it has neither pictures nor confusion matrices.
    The folder appears when it is complete. A study calls this for a trial that differs from a
    training in ``evaluate`` only.

    Args:
        source: The run folder of a finished training that differs from ``config`` in ``evaluate``
            only.
        target: The folder to make.
        config: The run to make.
        way: The way that :func:`way_from` returned.
        recipe: Name of the recipe that ``config`` came from, for the record.
        stop: Gives the evaluation up, once another thread sets it.

    Raises:
        EvaluationStoppedError: ``stop`` was set.
        ValueError: ``source`` is not finished, belongs to another training or other data, or lacks
            the counts or checkpoints that ``way`` needs.
        FileExistsError: ``target`` exists.
    """
    from toco.train.loop import Result

    started = time.monotonic()
    trained = RunFolder(source)
    result = trained.result() if trained.exists() else None
    if result is None or result["status"] != "finished":
        raise ValueError(
            f"{source} holds no finished training; only a finished one can be evaluated in another "
            "way."
        )
    config = _resolve_as_trained(config, trained, way)
    if target.exists():
        raise FileExistsError(f"{target} exists already; name a new folder for the evaluation.")

    rows = trained.metrics()
    evaluations = _averaged_rows(trained, rows, result, config)
    with whole_folder(target) as partial:
        folder = RunFolder(partial)
        evaluate_step, environment = (
            _rescorer(trained, folder, config)
            if way == "rescore"
            else _checkpoint_evaluator(trained, folder, config, stop)
        )
        origin = {
            "of": trained.digest(),
            "run": source.name,
            "rescored": way == "rescore",
            "environment": environment,
        }
        folder.create(
            config, recipe, trained.class_names(), {**trained.provenance(), "reevaluated": origin}
        )
        folder.set_metrics([row for row in rows if row["kind"] != "val"])
        for row in evaluations:
            evaluate_step(row["step"], row["time_s"])
        averages = averaged(folder.metrics(), config.evaluate.average_last)
        wall_time_s = round(time.monotonic() - started, 3)
        folder.finish({**result, "digest": digest(config), **averages, "wall_time_s": wall_time_s})
    return Result("finished", result["step"], averages["metrics"])


def way_from(source: Path, config: RunConfig, *, same_code: bool) -> Way | None:
    """Find how :func:`reevaluate` can make ``config`` from ``source``; ``None`` if it cannot.

    Args:
        source: A run folder, which may be missing or incomplete.
        config: The run to make.
        same_code: Whether the present code made the evaluations of ``source``. Counts of other code
            are not used.
    """
    trained = RunFolder(source)
    try:
        result = trained.result() if trained.exists() else None
        if result is None or result["status"] != "finished":
            return None
        trained_config = trained.config()
        _resolve_as_trained(config, trained, "rescore")
        steps = [row["step"] for row in _averaged_rows(trained, trained.metrics(), result, config)]
    except (OSError, ValueError, KeyError):
        return None
    if (
        same_code
        and _differs_in_thresholds_only(trained_config, config)
        and all(_has_counts(trained, config, step) for step in steps)
    ):
        return "rescore"
    checkpoints = [trained.checkpoints / checkpoint.folder_name(step) for step in steps]
    all_complete = all(
        (path / name).is_file()
        for path in checkpoints
        for name in (checkpoint.STATE, checkpoint.TENSORS)
    )
    return "evaluate" if steps and all_complete else None


def way_expected(trained: RunConfig, config: RunConfig, checkpoints: int) -> Way | None:
    """Predict what :func:`way_from` will return after a training that is not done yet.

    Args:
        trained: Config of the training.
        config: The run to make; it differs from ``trained`` in ``evaluate`` only.
        checkpoints: How many checkpoints the training will keep.
    """
    trained_evaluate, new_evaluate = trained.evaluate, config.evaluate
    has_counts = new_evaluate.average_last <= trained_evaluate.average_last and set(
        new_evaluate.thresholds()
    ) <= set(trained_evaluate.thresholds())
    if has_counts and _differs_in_thresholds_only(trained, config):
        return "rescore"
    needed = min(new_evaluate.average_last, math.ceil(trained.num_steps / trained.evaluate_every))
    return "evaluate" if needed <= checkpoints else None


_EvaluateStep = Callable[[int, float], object]
"""Function of a step and its row's ``time_s`` that adds the evaluation to the new folder."""


def _resolve_as_trained(config: RunConfig, trained: RunFolder, way: Way) -> RunConfig:
    """Resolve ``config`` as on the machine of the training, which may have been another one.

    Raises:
        ValueError: ``trained`` is the folder of another training.
    """
    trained_config = trained.config()
    method = config.method.resolved(
        trained_config.device.partition(":")[0], config.views.crop_size_px
    )
    device = trained_config.device if way == "rescore" else str(config.torch_device())
    config = config.model_copy(update={"method": method, "device": device})
    trained.check_same_config(config.model_copy(update={"evaluate": trained_config.evaluate}))
    return config


def _averaged_rows(
    trained: RunFolder, rows: Sequence[Row], result: Mapping[str, Any], config: RunConfig
) -> list[Row]:
    """Select the rows of the evaluations over which the result of ``config`` is the mean.

    Raises:
        UnreadableError: The last evaluation is not among ``rows``.
    """
    evaluations = [row for row in rows if row["kind"] == "val"]
    if not evaluations or evaluations[-1]["step"] != result["step"]:
        raise UnreadableError(
            f"{printable(trained.path / METRICS)} lacks the evaluation after step "
            f"{result['step']}, with which the training ended. Restore the file from a copy, or "
            "train again."
        )
    return evaluations[-config.evaluate.average_last :]


def _differs_in_thresholds_only(trained_config: RunConfig, config: RunConfig) -> bool:
    """Whether the evaluations differ at most in thresholds and in ``average_last``."""
    trained_values = {
        name: getattr(trained_config.evaluate, name) for name in (*_THRESHOLDS, "average_last")
    }
    return digest(config.evaluate.model_copy(update=trained_values)) == digest(
        trained_config.evaluate
    )


def _has_counts(trained: RunFolder, config: RunConfig, step: int) -> bool:
    """Whether counts at all thresholds of ``config`` are stored for the evaluation of ``step``."""
    file = trained.counts(step)
    try:
        return _counts(file, file.stat().st_mtime_ns).have(config.evaluate.thresholds())
    except (OSError, ValueError):
        return False


# A study asks for its thresholds one after the other, each time of the same few files.
@lru_cache(maxsize=8)
def _counts(file: Path, modified_ns: int) -> Confusions:
    return read_confusions(file)


def _rescorer(
    trained: RunFolder, folder: RunFolder, config: RunConfig
) -> tuple[_EvaluateStep, None]:
    from toco.evaluate.evaluator import rescore

    def evaluate_step(step: int, time_s: float) -> None:
        confusions = read_confusions(trained.counts(step))
        evaluation = rescore(trained.evaluation(step), confusions, config.evaluate)
        folder.add_evaluation(step, evaluation, config.evaluate.average_last)
        folder.add_metrics(step, "val", time_s, evaluation.metrics)

    return evaluate_step, None


def _checkpoint_evaluator(
    trained: RunFolder, folder: RunFolder, config: RunConfig, stop: threading.Event | None
) -> tuple[_EvaluateStep, dict[str, Any]]:
    from toco.train.loop import evaluate_into
    from toco.train.parts import method_of
    from toco.train.provenance import provenance

    _, val_set = open_data(config)
    inputs = trained.inputs()
    if inputs is None or val_set.manifest_digest() != inputs.val_data:
        raise ValueError(
            f"{trained.path} was evaluated on other validation data than data.root holds now; set "
            "data.root to the same data."
        )

    def evaluate_step(step: int, time_s: float) -> None:
        path = trained.checkpoints / checkpoint.folder_name(step)
        if not path.is_dir():
            raise ValueError(
                f"{trained.path} keeps no checkpoint of step {step}, whose evaluation is part of "
                f"the result. Train it again with keep_checkpoints={config.evaluate.average_last} "
                "or more, or set evaluate.average_last to the number of stored checkpoints."
            )
        method = method_of(checkpoint.read(path), config, len(val_set.class_names))
        evaluate_into(folder, method, val_set, config, step, time_s, stop=stop)

    return evaluate_step, provenance(config.torch_device(), inputs)
