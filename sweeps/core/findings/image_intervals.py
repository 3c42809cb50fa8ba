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
    mismatches: list[str] = []
    for row in study.rows:
        for key in keys:
            test = pairs.paired.get((row.number, key))
            arrays = _resampled_pairs(study, pairs, row, key, keys) if test else None
            if test is None or arrays is None:
                continue
            interval = difference_interval(*arrays)
            if abs(interval.difference - test.difference) > ADDS_UP:
                mismatches.append(f"{row.label} ({key})")
                continue
            metrics[row.number, key] = interval
            classes[row.number, key] = class_difference_intervals(*arrays)
    reason = "the confusion matrices by image do not add up to the metric"
    notes = (
        [f"No interval over images, since {reason}: {', '.join(mismatches)}."] if mismatches else []
    )
    return ImageIntervals(metrics, classes, tuple(notes))


def missing_files(study: StudyRecord) -> tuple[str, ...]:
    """Write a note about missing files of evaluations, if any."""
    finished = [trial for trial in study.trials if trial.counts]
    files = {trial.key: unreadable_files(trial) for trial in finished}
    number = sum(bool(of_trial) for of_trial in files.values())
    if not number:
        return ()
    names = [
        path.relative_to(study.path.parent).as_posix()
        for of_trial in files.values()
        for path in of_trial
    ]
    num_unnamed = len(names) - FILES_NAMED
    more = f" and {num_unnamed} more" if num_unnamed > 0 else ""
    return (
        f"For {number} of {len(finished)} finished trials, counts by image or scores by class are "
        "missing or damaged, so their rows lack intervals over images or scores by class. "
        f"The files: {', '.join(names[:FILES_NAMED])}{more}.",
    )


def _resampled_pairs(
    study: StudyRecord, pairs: Pairs, row: PlannedRow, key: str, keys: tuple[str, ...]
) -> tuple[Floats, Floats] | None:
    """Compute the IoU on resampled images of a row and its base, paired by evaluation.

    The result is ``None`` if the trials of a pair were not evaluated on the same images.
    """
    if row.versus is None:
        return None
    row_trials, base_trials = (
        {trial.replicate: trial for trial in study.trials_of(table_row)}
        for table_row in (row, study.rows[row.versus])
    )
    common = sorted(pairs.values[row.number, key].keys() & pairs.values[row.versus, key].keys())
    of_row, of_base = [], []
    for replicate in common:
        row_result, base_result = (
            resampled(row_trials[replicate], keys),
            resampled(base_trials[replicate], keys),
        )
        if row_result is None or base_result is None or row_result[0] != base_result[0]:
            return None
        if (
            key not in row_result[1]
            or key not in base_result[1]
            or row_result[1][key].shape != base_result[1][key].shape
        ):
            return None
        of_row.append(row_result[1][key])
        of_base.append(base_result[1][key])
    return np.concatenate(of_row), np.concatenate(of_base)
