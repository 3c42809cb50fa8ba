"""Image-level classifier whose weight also makes the CAM."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Pooling = Literal["mean", "max"]
"""How the patches of an image make one value."""


class Classifier(nn.Module):
    """Pooling over patches, channel by channel, then a linear layer without bias.

    With one weight vector per class and no bias, applying ``weight`` to every token gives the CAM
    (:func:`toco.cam.activation.activation_maps`).

    Args:
        in_channels: Width of the tokens.
        num_foreground_classes: Classes without the background.
        pooling: ToCo's is the maximum.
    """

    weight: Float[Tensor, "k c"]

    def __init__(
        self, in_channels: int, num_foreground_classes: int, pooling: Pooling = "max"
    ) -> None:
        super().__init__()
        self.pooling = pooling
        # Torch's default for a 1x1 convolution, which the official code has here: uniform within
        # 1/sqrt(fan-in).
        bound = in_channels**-0.5
        self.weight = nn.Parameter(
            torch.empty(num_foreground_classes, in_channels).uniform_(-bound, bound)
        )

    def forward(self, features: Float[Tensor, "b c p q"]) -> Float[Tensor, "b k"]:
        """Logits of the foreground classes."""
        return nn.functional.linear(pool(features, self.pooling), self.weight)


def pool(maps: Float[Tensor, "b c p q"], pooling: Pooling) -> Float[Tensor, "b c"]:
    """Pool every map of every image over its patches."""
    patches = maps.flatten(2)
    # max, not amax: at a tie the gradient goes to one patch, as in max pooling, and is not shared.
    return patches.mean(dim=2) if pooling == "mean" else patches.max(dim=2).values
