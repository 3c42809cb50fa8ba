"""Evaluation of a trained method on a split."""

from toco.evaluate.evaluator import EvaluateConfig, evaluate
from toco.evaluate.pictures import draw_similarity_curve, draw_threshold_curve, save_panels
from toco.evaluate.report import Evaluation, Picture, ThresholdCurve

__all__ = [
    "EvaluateConfig",
    "Evaluation",
    "Picture",
    "ThresholdCurve",
    "draw_similarity_curve",
    "draw_threshold_curve",
    "evaluate",
    "save_panels",
]
