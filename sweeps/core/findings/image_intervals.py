"""Noise of the test set: an interval of every difference over resampled images.

No p value and no mark depends on it.
"""

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
"""Tolerance between a metric and its value recomputed from confusion matrices.

Rounding errors are smaller. A difference of 0.01 points mIoU is another evaluation's file.
"""
FILES_NAMED = 3
"""Number of missing or damaged files that a note lists: enough to find the others, in one line."""


@dataclass(frozen=True, slots=True)
class ImageIntervals:
    """Intervals over images, for the same pairs of trials as the paired differences.

    Attributes:
        metrics: Intervals by place. A place is absent if a pair of trials has no confusion matrices
            by image.
        classes: Intervals of each class, in the order of the data set; ``None`` for a class that
            the ground truth does not contain.
        notes: Intervals that were left out and the reasons, as sentences.
    """

    metrics: Mapping[Place, ImageInterval]
    classes: Mapping[Place, tuple[ImageInterval | None, ...]]
    notes: tuple[str, ...]


def per_image_metrics(study: StudyRecord) -> tuple[str, ...]:
    """List the study's metrics that can be computed from confusion matrices by image."""
    return tuple(metric.key for metric in study.metrics if map_of(metric.key) is not None)


def image_intervals(study: StudyRecord, pairs: Pairs) -> ImageIntervals:
    """Compute the intervals of all rows by resampling images."""
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
    """Write a note about missing files of evaluations, if any."""
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
        f"For {number} of {len(counted)} finished trials, counts by image or scores by class are "
        "missing or damaged, so their rows lack intervals over images or scores by class. "
        f"The files: {', '.join(names[:FILES_NAMED])}{f' and {rest} more' if rest > 0 else ''}.",
    )


def _resampled_pairs(
    study: StudyRecord, pairs: Pairs, row: PlannedRow, key: str, keys: tuple[str, ...]
) -> tuple[Floats, Floats] | None:
    """Compute the IoU on resampled images of a row and its base, paired by evaluation.

    The result is ``None`` if the trials of a pair were not evaluated on the same images.
    """
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
