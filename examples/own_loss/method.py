"""The plain CAM with one loss more: the last patch tokens are asked to be small."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import Field
from torch import Tensor

from toco.backbones import Backbone
from toco.methods import cam
from toco.tensors import Features


class Config(cam.Config):
    """Settings of the plain CAM, and one more.

    Attributes:
        size_weight: Weight of the mean absolute value of the last patch tokens. Its name ends in
            ``_weight``, so that the tuning of the table of methods finds it.
    """

    name: str = __name__
    size_weight: float = Field(default=0.05, ge=0)


def build(config: Config, backbone: Backbone, num_foreground_classes: int) -> SmallTokens:
    """Build the method on ``backbone``."""
    return SmallTokens(config, backbone, num_foreground_classes)


class SmallTokens(cam.Cam):
    """The plain CAM with a penalty on the size of its tokens."""

    config: Config

    def further_weights(self, step: int) -> dict[str, float]:
        """The weight of the penalty; a loss with weight 0 is not computed."""
        return {"token_size": self.config.size_weight}

    def further_losses(
        self, features: Features, class_labels: Tensor, terms: Collection[str]
    ) -> dict[str, Tensor]:
        """The penalty; ``by_group`` averages it as every loss, whatever the number of GPUs."""
        if "token_size" not in terms:
            return {}
        return {"token_size": self.by_group(lambda tokens: tokens.abs().mean(), features.features)}
