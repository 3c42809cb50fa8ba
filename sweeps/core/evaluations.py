"""What the evaluations of finished trials left beside their numbers: IoU by class, confusion matrices by image."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sweeps.core.image_noise import resampled_iou
from sweeps.core.statistics import Floats
from sweeps.core.study_record import TrialRecord
from toco.evaluate.confusions import read_confusions

PER_IMAGE = {"val/seg_miou": "seg", "val/cam_miou": "cam", "val/aux_cam_miou": "aux_cam"}
"""Metrics that are an mIoU at the fixed threshold, and what their confusion matrices are called."""
RESAMPLES = 2000
_KEPT = 256
"""Files whose content stays in memory: about 1 MB each for 21 classes and three metrics."""

Resampled = Mapping[str, Floats]
"""By metric: ``[evaluations, 1 + RESAMPLES, classes]``, see ``sweeps.core.image_noise.resampled_iou``."""


def class_iou(trial: TrialRecord) -> Mapping[str, Mapping[str, float | None]]:
    """IoU by metric and class, mean over the evaluations that the trial's result is the mean of; empty where unknown.

    Classes are in the data's order, the background first; ``None`` for one that the ground truth does not contain.
    """
    contents = [_read(path, path.stat().st_mtime_ns) for path in _evaluations(trial, ".json")]
    whole = [content for content in contents if content is not None]
    if not whole or len(whole) < len(contents):
        return {}
    found: dict[str, dict[str, float | None]] = {}
    for key, name in PER_IMAGE.items():
        columns = [content["per_class"].get(f"{name}_iou") for content in whole]
        if all(columns):
            labelled = zip(whole[0]["class_names"], *columns, strict=True)
            found[key] = {label: None if None in values else float(np.mean(values)) for label, *values in labelled}
    return found


def resampled(trial: TrialRecord, keys: tuple[str, ...]) -> tuple[tuple[str, ...], Resampled] | None:
    """Names of the images, and IoU on resampled images; ``None`` where an evaluation of the trial has no such file."""
    parts = [_resampled(path, path.stat().st_mtime_ns, keys) for path in _evaluations(trial, ".npz")]
    whole = [part for part in parts if part is not None]
    if not whole or len(whole) < len(parts) or any(names != whole[0][0] for names, _ in whole):
        return None
    return whole[0][0], {key: np.concatenate([iou[key] for _, iou in whole]) for key in keys}


def num_images(trials: Iterable[TrialRecord]) -> int | None:
    """Images that the first trial that says so was evaluated on."""
    for trial in trials:
        for path in _evaluations(trial, ".npz"):
            found = _num_images(path, path.stat().st_mtime_ns)
            if found is not None:
                return found
    return None


def _evaluations(trial: TrialRecord, suffix: str) -> list[Path]:
    """Files of the evaluations that count, first to last; empty where one is missing."""
    last = int(trial.entry.get("config", {}).get("evaluate", {}).get("average_last", 1)) if trial.counts else 0
    folder = trial.run_dir / "evaluations"
    steps = sorted(path.stem for path in folder.glob("step_*.json"))[-last:] if last else []
    files = [folder / f"{step}{suffix}" for step in steps]
    return files if files and all(path.is_file() for path in files) else []


# A page that follows a running study is written again and again: what has not changed is not read again.
@lru_cache(maxsize=_KEPT)
def _read(path: Path, modified_ns: int) -> Mapping[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"class_names": content["class_names"], "per_class": content["per_class"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


@lru_cache(maxsize=_KEPT)
def _resampled(path: Path, modified_ns: int, keys: tuple[str, ...]) -> tuple[tuple[str, ...], Resampled] | None:
    try:
        confusions = read_confusions(path)
    except (OSError, ValueError):
        return None
    counts = {key: getattr(confusions, PER_IMAGE[key]) for key in keys}
    return tuple(confusions.names), {key: resampled_iou(array[None], RESAMPLES) for key, array in counts.items()}


@lru_cache(maxsize=_KEPT)
def _num_images(path: Path, modified_ns: int) -> int | None:
    try:
        return len(read_confusions(path).names)
    except (OSError, ValueError):
        return None
