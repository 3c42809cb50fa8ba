"""Read the evaluations of finished trials: IoU by class, confusion matrices by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sweeps.core.statistics.image_noise import resampled_iou
from sweeps.core.statistics.paired import Floats
from sweeps.core.store.study_record import TrialRecord
from toco.evaluate.confusions import read_confusions
from toco.evaluate.report import map_of
from toco.train import records

RESAMPLES = 2000
"""Number of resamples behind an interval over images.

From 2,000 resamples, 50 lie beyond either end of a 95 % interval, so the ends hardly depend on the
draw.
"""
_CACHE_SIZE = 256
"""Number of files whose content stays in memory: about 1 MB each for 21 classes and 3 metrics.

A study has up to ``MANY_TRIALS`` (250) trials with such a file, so all fit.
"""

_Content = TypeVar("_Content")

Resampled = Mapping[str, Floats]
"""IoU on resampled images by metric: ``[evaluations, 1 + RESAMPLES, classes]``.

See :func:`sweeps.core.statistics.image_noise.resampled_iou`.
"""


def class_iou(trial: TrialRecord) -> Mapping[str, Mapping[str, float | None]]:
    """Read the IoU of a trial by metric and class; empty if unknown.

    The IoU is the mean over the same evaluations as the trial's result. Classes are in the order of
    the data set, the background first. A class that the ground truth does not contain has ``None``.
    """
    contents = [_read_current(_scores, path) for path in _evaluation_files(trial, ".json")]
    readable = [content for content in contents if content is not None]
    if not readable or len(readable) < len(contents):
        return {}
    iou: dict[str, dict[str, float | None]] = {}
    maps = [
        column.removesuffix("_iou")
        for column in readable[0]["per_class"]
        if column.endswith("_iou")
    ]
    for name in maps:
        columns = [content["per_class"].get(f"{name}_iou") for content in readable]
        if all(columns):
            labelled = zip(readable[0]["class_names"], *columns, strict=True)
            iou[f"val/{name}_miou"] = {
                label: None if None in values else float(np.mean(values))
                for label, *values in labelled
            }
    return iou


def resampled(
    trial: TrialRecord, keys: tuple[str, ...]
) -> tuple[tuple[str, ...], Resampled] | None:
    """Read the names of the images, and compute the IoU on resampled images.

    Metrics that the trial's method does not have are left out. The result is ``None`` if an
    evaluation lacks its confusion matrices.
    """
    parts = [_read_current(_resampled, path, keys) for path in _evaluation_files(trial, ".npz")]
    results = [part for part in parts if part is not None]
    if (
        not results
        or len(results) < len(parts)
        or any(names != results[0][0] for names, _ in results)
    ):
        return None
    return results[0][0], {
        key: np.concatenate([iou[key] for _, iou in results]) for key in results[0][1]
    }


def num_images(trials: Iterable[TrialRecord]) -> int | None:
    """Return the number of images of an evaluation.

    It is read from the first trial that has it; ``None`` if no trial has it.
    """
    counts = (
        _read_current(_num_images, path)
        for trial in trials
        for path in _evaluation_files(trial, ".npz")
    )
    return next((count for count in counts if count is not None), None)


def unreadable_files(trial: TrialRecord) -> list[Path]:
    """List the missing or damaged files of a trial's evaluations; empty without a result.

    A trial that was rescored from the confusion matrices of another trial has none of its own.
    """
    counts = (
        [] if trial.entry is None or trial.entry.is_rescored else _evaluation_files(trial, ".npz")
    )
    return [
        *(
            path
            for path in _evaluation_files(trial, ".json")
            if _read_current(_scores, path) is None
        ),
        *(path for path in counts if _read_current(_num_images, path) is None),
    ]


def _evaluation_files(trial: TrialRecord, suffix: str) -> list[Path]:
    """List the files of the evaluations that the result averages, in order, existing or not."""
    # A training that toco did not run has no config.
    if trial.entry is None or not trial.counts or not trial.entry.config:
        return []
    config = trial.entry.config
    last, every = config["num_steps"], config["evaluate_every"]
    steps = [*range(every, last, every), last][-config["evaluate"].get("average_last", 1) :]
    return [trial.run_dir / "evaluations" / f"step_{step:08d}{suffix}" for step in steps]


def _read_current(
    read: Callable[..., _Content | None], path: Path, *arguments: object
) -> _Content | None:
    """Call ``read`` with the file and its modification time; ``None`` if no such file exists."""
    try:
        modified_ns = path.stat().st_mtime_ns
    except OSError:
        return None
    return read(path, modified_ns, *arguments)


# A live page follows a running study and reads the same files again and again. The cache keeps the
# content of files whose modification time has not changed.
@lru_cache(maxsize=_CACHE_SIZE)
def _scores(path: Path, modified_ns: int) -> Mapping[str, Any] | None:
    try:
        content = records.read(path)
        scores = {"class_names": content["class_names"], "per_class": content["per_class"]}
        lengths = {len(column) for column in scores["per_class"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return scores if lengths <= {len(scores["class_names"])} else None


@lru_cache(maxsize=_CACHE_SIZE)
def _resampled(
    path: Path, modified_ns: int, keys: tuple[str, ...]
) -> tuple[tuple[str, ...], Resampled] | None:
    try:
        confusions = read_confusions(path)
        counts = {
            key: matrices
            for key in keys
            if (matrices := confusions.matrices.get(map_of(key) or "")) is not None
        }
        iou = {key: resampled_iou(array[None], RESAMPLES) for key, array in counts.items()}
    except (OSError, ValueError):
        return None
    return tuple(confusions.names), iou


@lru_cache(maxsize=_CACHE_SIZE)
def _num_images(path: Path, modified_ns: int) -> int | None:
    try:
        return len(read_confusions(path).names)
    except (OSError, ValueError):
        return None
