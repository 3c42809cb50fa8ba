"""Evaluation of a trained method on a split. What draws is in ``pictures``, apart because it imports matplotlib."""

from toco.evaluate.confusions import Confusions, read_confusions
from toco.evaluate.evaluator import EvaluateConfig, can_rescore, evaluate, rescore
from toco.evaluate.report import Evaluation, Picture, ThresholdCurve

__all__ = [
    "Confusions",
    "EvaluateConfig",
    "Evaluation",
    "Picture",
    "ThresholdCurve",
    "can_rescore",
    "evaluate",
    "read_confusions",
    "rescore",
]
