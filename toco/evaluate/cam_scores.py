"""Scores of the CAMs, computed from their histograms alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from toco.evaluate.report import ThresholdCurve, undefined_to_none
from toco.metrics.cam_quality import CamQuality
from toco.metrics.segmentation import ClassScores, class_scores, mean_over_classes


@dataclass(frozen=True, slots=True)
class CamScores:
    """The part of an :class:`toco.evaluate.Evaluation` that depends on thresholds."""

    metrics: dict[str, float]
    per_class: dict[str, tuple[float | None, ...]]
    threshold_curve: ThresholdCurve


def score_cams(
    qualities: Mapping[str, CamQuality], thresholds: tuple[float, ...], fixed: int
) -> CamScores:
    """Score CAMs at the fixed threshold and over the curve of all thresholds.

    Args:
        qualities: Counts of each CAM by name, ``cam`` among them.
        thresholds: Thresholds of ``qualities``.
        fixed: Index of the fixed threshold.
    """
    scores = {
        name: class_scores(quality.confusion_matrices()) for name, quality in qualities.items()
    }
    metrics: dict[str, float] = {}
    for name, cam_score in scores.items():
        metrics |= _metrics(name, cam_score, thresholds, fixed)
    final = scores["cam"]
    return CamScores(
        metrics={f"val/{name}": value for name, value in metrics.items() if math.isfinite(value)},
        per_class={
            **{
                f"{name}_iou": undefined_to_none(cam_score.iou[fixed].tolist())
                for name, cam_score in scores.items()
            },
            "cam_precision": undefined_to_none(final.precision[fixed].tolist()),
            "cam_recall": undefined_to_none(final.recall[fixed].tolist()),
        },
        threshold_curve=ThresholdCurve(
            thresholds=thresholds,
            miou={
                name: undefined_to_none(mean_over_classes(cam_score.iou).tolist())
                for name, cam_score in scores.items()
            },
        ),
    )


def _metrics(
    prefix: str, scores: ClassScores, thresholds: tuple[float, ...], fixed: int
) -> dict[str, float]:
    """Score one CAM at the fixed and at the best threshold (the lowest one on ties)."""
    miou = mean_over_classes(scores.iou)
    best = int(miou.nan_to_num(-1.0).argmax())
    return {
        f"{prefix}_miou": miou[fixed].item(),
        f"{prefix}_best_miou": miou[best].item(),
        f"{prefix}_best_threshold": thresholds[best] if miou[best].isfinite() else math.nan,
        f"{prefix}_precision": mean_over_classes(scores.precision[fixed]).item(),
        f"{prefix}_recall": mean_over_classes(scores.recall[fixed]).item(),
        f"{prefix}_fp_rate": mean_over_classes(scores.fp_rate[fixed]).item(),
        f"{prefix}_fn_rate": mean_over_classes(scores.fn_rate[fixed]).item(),
        f"{prefix}_confusion_ratio": mean_over_classes(scores.confusion_ratio[fixed]).item(),
    }
