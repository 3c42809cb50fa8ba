"""Vision transformers of timm with a class token.

ViT, DeiT, DINO (v1 to v3), EVA and CLIP are among them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from toco.backbones._config import Dimensions, StochasticDepthConfig, TimmConfig, weights_path

if TYPE_CHECKING:
    from toco.backbones._vit import ViT

_TWELVE_BLOCKS = re.compile(
    r"(vit|deit|deit3)_(tiny|small|base)(_distilled)?_patch(?P<patch>\d+)_\d+(\..*)?"
)
"""Names in timm of the plain ViTs up to ViT-B, which have 12 blocks."""


class Config(TimmConfig, StochasticDepthConfig):
    """Settings of a ViT of timm."""

    name: str = "vit"
    model: str = "deit_base_patch16_224.fb_in1k"

    def dimensions(self) -> Dimensions | None:
        """See the base class; the names of plain ViTs give the dimensions."""
        match = _TWELVE_BLOCKS.fullmatch(self.model)
        return None if match is None else Dimensions(12, int(match["patch"]))


def build(config: Config) -> ViT:
    """Build the backbone that ``config`` describes.

    Raises:
        ValueError: timm has no such model, it is no ViT with a class token, or the weights do not
            fit.
    """
    # Imported late: naming a backbone needs no torch.
    from toco.backbones._timm import build as build_timm
    from toco.backbones._vit import ViT

    # dynamic_img_size only changes the layout of the patch embedding's output; the class ViT
    # interpolates positions.
    return build_timm(config, "ViT", ViT, dynamic_img_size=True, drop_path_rate=config.drop_path)


__all__ = ["Config", "build", "weights_path"]
