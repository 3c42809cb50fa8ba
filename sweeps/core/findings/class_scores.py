"""IoU of every class in every row, with the difference from the base row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sweeps.core.findings.evaluations import class_iou
from sweeps.core.findings.image_intervals import ImageIntervals, per_image_metrics
from sweeps.core.statistics.image_noise import ImageInterval
from sweeps.core.statistics.paired import Paired, Summary, paired, summarise
from sweeps.core.store.study_record import StudyRecord

ClassScores = Mapping[str, tuple["ClassFigures", ...]]
"""Figures of the classes by metric key, the background first; only for metrics with class IoUs."""


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """IoU of one class in a row, with the difference from the row's base.

    The p value is not corrected for the number of classes. ``summary`` is ``None`` for a class that
    the ground truth does not contain.
    """

    name: str
    summary: Summary | None
    paired: Paired | None
    images: ImageInterval | None


def class_scores(study: StudyRecord, intervals: ImageIntervals) -> dict[int, ClassScores]:
    """Compute the class scores of every row that has them, by row number."""
    iou = {
        row.number: {
            trial.replicate: class_iou(trial) for trial in study.trials_of(row) if trial.counts
        }
        for row in study.rows
    }
    scores: dict[int, dict[str, tuple[ClassFigures, ...]]] = {}
    for row in study.rows:
        for key in per_image_metrics(study):
            names = next(
                (of_trial[key] for of_trial in iou[row.number].values() if key in of_trial), {}
            )
            images = intervals.classes.get((row.number, key), ())
            if len(images) != len(
                names
            ):  # the scores of all seeds, or some counts, are missing or damaged
                images = (None,) * len(names)
            figures = []
            for name, interval in zip(names, images, strict=True):
                row_values = _of_class(iou[row.number], key, name)
                base_values = {} if row.versus is None else _of_class(iou[row.versus], key, name)
                figures.append(
                    ClassFigures(
                        name,
                        summarise(row_values.values()),
                        paired(row_values, base_values),
                        interval,
                    )
                )
            if figures:
                scores.setdefault(row.number, {})[key] = tuple(figures)
    return dict(scores)


def _of_class(
    iou: Mapping[int, Mapping[str, Mapping[str, float | None]]], key: str, name: str
) -> dict[int, float]:
    values = {replicate: of_trial.get(key, {}).get(name) for replicate, of_trial in iou.items()}
    return {replicate: value for replicate, value in values.items() if value is not None}
