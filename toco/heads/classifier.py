"""Image-level classifier whose weights are also what the CAM is made with."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Classifier(nn.Module):
    """Global max pooling over patches, channel by channel, then a linear layer without bias.

    Without a bias and with one weight vector per class, applying ``weight`` to every token gives
    the CAM (:func:`toco.cam.activation.activation_maps`).

    Args:
        in_channels: Width of the tokens.
        num_foreground_classes: Classes without the background.
    """

    weight: Float[Tensor, "k c"]

    def __init__(self, in_channels: int, num_foreground_classes: int) -> None:
        super().__init__()
        # The default of a 1x1 convolution, which is what the official code holds here: uniform
        # within 1/sqrt(fan-in).
        bound = in_channels**-0.5
        self.weight = nn.Parameter(
            torch.empty(num_foreground_classes, in_channels).uniform_(-bound, bound)
        )

    def forward(self, features: Float[Tensor, "b c p q"]) -> Float[Tensor, "b k"]:
        """Logits of the foreground classes."""
        # max, not amax: the gradient of a tie goes to one patch, as in max pooling, instead of to
        # all in equal parts.
        pooled = features.flatten(2).max(dim=2).values
        return nn.functional.linear(pooled, self.weight)
