"""Evaluation of a trained method on a split. These exports need neither torch nor matplotlib."""

from toco.evaluate.config import EvaluateConfig
from toco.evaluate.confusions import Confusions, read_confusions
from toco.evaluate.report import Evaluation, Picture, ThresholdCurve

__all__ = [
    "Confusions",
    "EvaluateConfig",
    "Evaluation",
    "Picture",
    "ThresholdCurve",
    "read_confusions",
]
