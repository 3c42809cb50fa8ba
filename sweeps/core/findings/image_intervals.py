"""Noise of the test set: an interval of every difference over resampled images. It enters no p value and no mark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sweeps.core.design.study import PlannedRow
from sweeps.core.findings.comparisons import Pairs, Place
from sweeps.core.findings.evaluations import resampled, unreadable_files
from sweeps.core.statistics.image_noise import (
    ImageInterval,
    class_difference_intervals,
    difference_interval,
)
from sweeps.core.statistics.paired import Floats
from sweeps.core.store.study_record import StudyRecord
from toco.evaluate.report import map_of

ADDS_UP = 1e-4
"""Largest difference between a metric and the same computed from confusion matrices by image that is rounding."""
FILES_NAMED = 3
"""Missing or damaged files that are named one by one."""


@dataclass(frozen=True, slots=True)
class ImageIntervals:
    """Intervals over the very pairs of trials that a paired difference is of.

    Attributes:
        metrics: By row and metric; absent where confusion matrices by image are not there for every
            pair.
        classes: The same for each class, in the data's order; ``None`` for one that the ground
            truth does not contain.
        notes: What was not used and why, in sentences.
    """

    metrics: Mapping[Place, ImageInterval]
    classes: Mapping[Place, tuple[ImageInterval | None, ...]]
    notes: tuple[str, ...]


def per_image_metrics(study: StudyRecord) -> tuple[str, ...]:
    """The metrics of the study that evaluations count image by image."""
    return tuple(metric.key for metric in study.metrics if map_of(metric.key) is not None)


def image_intervals(study: StudyRecord, pairs: Pairs) -> ImageIntervals:
    """Resample the images of every row and of the row it is compared with."""
    keys = per_image_metrics(study)
    metrics: dict[Place, ImageInterval] = {}
    classes: dict[Place, tuple[ImageInterval | None, ...]] = {}
    odd: list[str] = []
    for row in study.rows:
        for key in keys:
            test = pairs.paired.get((row.number, key))
            arrays = _resampled_pairs(study, pairs, row, key, keys) if test else None
            if test is None or arrays is None:
                continue
            interval = difference_interval(*arrays)
            if abs(interval.difference - test.difference) > ADDS_UP:
                odd.append(f"{row.label} ({key})")
                continue
            metrics[row.number, key] = interval
            classes[row.number, key] = class_difference_intervals(*arrays)
    reason = "the confusion matrices by image do not add up to the metric"
    notes = [f"No interval over images, since {reason}: {', '.join(odd)}."] if odd else []
    return ImageIntervals(metrics, classes, tuple(notes))


def missing_files(study: StudyRecord) -> tuple[str, ...]:
    """Name the files without which trials lack intervals over images or scores by class."""
    counted = [trial for trial in study.trials if trial.counts]
    files = {trial.key: unreadable_files(trial) for trial in counted}
    number = sum(bool(of_trial) for of_trial in files.values())
    if not number:
        return ()
    names = [
        path.relative_to(study.path.parent).as_posix()
        for of_trial in files.values()
        for path in of_trial
    ]
    rest = len(names) - FILES_NAMED
    return (
        f"For {number} of {len(counted)} finished trials, counts by image or scores by class are missing or "
        "damaged, so their rows lack intervals over images or scores by class. The files: "
        f"{', '.join(names[:FILES_NAMED])}{f' and {rest} more' if rest > 0 else ''}.",
    )


def _resampled_pairs(
    study: StudyRecord, pairs: Pairs, row: PlannedRow, key: str, keys: tuple[str, ...]
) -> tuple[Floats, Floats] | None:
    """IoU on resampled images of the row and of what it is compared with; a place for each pair of evaluations."""
    if row.versus is None:
        return None
    ours, base = (
        {trial.replicate: trial for trial in study.trials_of(shown)}
        for shown in (row, study.rows[row.versus])
    )
    common = sorted(pairs.values[row.number, key].keys() & pairs.values[row.versus, key].keys())
    of_row, of_base = [], []
    for replicate in common:
        one, other = resampled(ours[replicate], keys), resampled(base[replicate], keys)
        if one is None or other is None or one[0] != other[0]:
            return None
        if key not in one[1] or key not in other[1] or one[1][key].shape != other[1][key].shape:
            return None
        of_row.append(one[1][key])
        of_base.append(other[1][key])
    return np.concatenate(of_row), np.concatenate(of_base)
