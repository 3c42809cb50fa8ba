"""VGG16 of timm with stride 8 (dilated), which has NO CLASS TOKEN.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015, in the form that the official RCA code takes over from OAA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from toco.backbones._config import HUB, Dimensions, TimmConfig, weights_path

if TYPE_CHECKING:
    from toco.backbones._vgg16 import Vgg16

_CLASSIFIER_WIDTH = 4096
"""Width of the classifier of timm's VGG at ``mlp_ratio`` 1."""


class Config(TimmConfig):
    """Settings of a VGG of timm without batch norm.

    A block is one of the five stages. ``aux_block`` may be 3 or 4, which have the final grid.

    Attributes:
        class_token: ``pooled`` is the mean of the final map. Class token contrast uses it, because
            a VGG has no class token. This is not in the paper of ToCo. The setting has one value,
            and exists so that every record of a run says so.
    """

    name: str = "vgg16"
    model: str = "vgg16.tv_in1k"
    class_token: Literal["pooled"] = "pooled"  # noqa: S105 - not a password

    def dimensions(self) -> Dimensions:
        """See the base class."""
        return Dimensions(5, 8)


def build(config: Config) -> Vgg16:
    """Build the backbone that ``config`` describes.

    Raises:
        ValueError: timm has no such model, it is no VGG without batch norm, or the weights do not
            fit.
    """
    # Imported late: naming a backbone needs no torch.
    from toco.backbones._timm import build as build_timm
    from toco.backbones._vgg16 import Vgg16

    # Only the hub's weights hold the classifier, which is left out. Of other networks it gets one
    # channel: its 120 million weights would take longer to draw than all others together.
    mlp_ratio = 1.0 if config.weights == HUB else 1 / _CLASSIFIER_WIDTH
    return build_timm(config, "VGG", Vgg16, mlp_ratio=mlp_ratio)


__all__ = ["Config", "build", "weights_path"]
