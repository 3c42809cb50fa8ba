"""Convolutional heads on the patch grid: class maps and embeddings of RCA.

Source: official RCA code (Zhou et al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor, nn

from toco.heads.classifier import Pooling, pool

_STD = 0.01
"""Standard deviation of the initial weights; official. Biases start as torch's default."""


class ConvMaps(nn.Module):
    """Class maps of three 3x3 convolutions and a 1x1 convolution; their mean is the logit.

    Args:
        in_channels: Channels of the features.
        num_foreground_classes: Classes without the background.
        private: Whether every class has a chain of its own. At 512 channels and 20 classes the
            chains have 142 million weights.
        pooling: What makes a logit of a map; official is the mean.
    """

    def __init__(
        self, in_channels: int, num_foreground_classes: int, private: bool, pooling: Pooling
    ) -> None:
        super().__init__()
        chains = num_foreground_classes if private else 1
        width = chains * in_channels
        self.pooling = pooling
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=chains),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=chains),
            nn.ReLU(),
            nn.Conv2d(width, num_foreground_classes, 1, groups=chains),
        )
        start_official(self.layers)

    def forward(self, features: Float[Tensor, "b c p q"]) -> Float[Tensor, "b k p q"]:
        """Maps of all classes, before any activation."""
        maps: Tensor = self.layers(features)
        return maps

    def logits(self, maps: Float[Tensor, "b k p q"]) -> Float[Tensor, "b k"]:
        """Pool the maps."""
        return pool(maps, self.pooling)


class ConvEmbedding(nn.Module):
    """Embedding of two 3x3 convolutions with batch norm and ReLU between them.

    The batch norm takes the statistics of the images of a call, and keeps none, because only
    training uses the embedding.

    Args:
        width: Channels of features and embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width, track_running_stats=False),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        start_official(self.layers)

    def forward(self, features: Float[Tensor, "b c p q"]) -> Float[Tensor, "b c p q"]:
        """Embed the features."""
        embedding: Tensor = self.layers(features)
        return embedding


class PointEmbedding(nn.Module):
    """Embedding of two 1x1 convolutions with ReLU: for tokens that have seen the image already.

    Args:
        width: Channels of features and embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, features: Float[Tensor, "b c p q"]) -> Float[Tensor, "b c p q"]:
        """Embed the features."""
        embedding: Tensor = self.layers(features)
        return embedding


def start_official(modules: Iterable[nn.Module]) -> None:
    """Draw the initial weights of convolutions from the official normal distribution."""
    for module in modules:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=_STD)
