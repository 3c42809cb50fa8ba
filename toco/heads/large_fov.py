"""The segmentation decoder."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class LargeFov(nn.Module):
    """DeepLab's LargeFOV head on the patch grid.

    It has two dilated 3x3 convolutions and a 1x1 convolution, without biases. Layers keep their
    names from DeepLab (fc6 to fc8, as convolutions), so that official weights load unchanged. The
    initialisation is torch's default: the official code defines its own but never calls it.

    Args:
        in_channels: Width of the tokens.
        num_classes: Classes including the background.
        hidden_channels: Width between the convolutions.
        dilation: Distance between the taps of the 3x3 convolutions, in patches.
    """

    def __init__(
        self, in_channels: int, num_classes: int, hidden_channels: int, dilation: int
    ) -> None:
        super().__init__()
        self.conv6 = nn.Conv2d(
            in_channels, hidden_channels, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.conv7 = nn.Conv2d(
            hidden_channels, hidden_channels, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.conv8 = nn.Conv2d(hidden_channels, num_classes, 1, bias=False)

    def forward(self, features: Float[Tensor, "b c p q"]) -> Float[Tensor, "b s p q"]:
        """Logits of all classes, background first, on the patch grid."""
        hidden = self.conv6(features).relu()
        logits: Tensor = self.conv8(self.conv7(hidden).relu())
        return logits
