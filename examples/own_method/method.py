"""ToCo whose classifiers pool the best patches of each channel, between max and mean pooling."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from toco.backbones import Backbone
from toco.heads.classifier import Classifier
from toco.methods import toco


class Config(toco.Config):
    """Settings of ToCo, and one more.

    Attributes:
        pooled_fraction: A class score is the mean over this fraction of the patches, the best of
            each channel. At least one patch counts: 0 is ToCo's max pooling, 1 is mean pooling.
    """

    name: str = __name__
    pooled_fraction: float = Field(default=0.1, ge=0, le=1)


def build(config: Config, backbone: Backbone, num_foreground_classes: int) -> toco.ToCo:
    """Build ToCo with other classifiers; with the same seed all weights begin as ToCo's."""
    method = toco.ToCo(config, backbone, num_foreground_classes)
    method.classifier = PooledClassifier(method.classifier, config.pooled_fraction)
    method.aux_classifier = PooledClassifier(method.aux_classifier, config.pooled_fraction)
    return method


class PooledClassifier(Classifier):
    """A classifier over the mean of the best patches; its weight also makes the CAM.

    Args:
        like: Classifier whose weight is used.
        fraction: Fraction of the patches to pool.
    """

    def __init__(self, like: Classifier, fraction: float) -> None:
        nn.Module.__init__(self)
        self.weight = like.weight
        self.fraction = fraction

    def forward(self, features: Float[Tensor, "b c p q"]) -> Float[Tensor, "b k"]:
        """Logits of the foreground classes."""
        patches = features.flatten(2)
        count = max(round(self.fraction * patches.shape[2]), 1)
        return F.linear(patches.topk(count, dim=2).values.mean(dim=2), self.weight)
