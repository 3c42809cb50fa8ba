"""A small ViT for the embedded benchmark and for tests; it trains on one CPU core."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from toco.backbones._config import Dimensions, StochasticDepthConfig, split_entry
from toco.config import PLACE

if TYPE_CHECKING:
    from toco.backbones._vit import ViT

BUNDLED = "bundled"
BUNDLED_WEIGHTS = Path(__file__).with_suffix(".safetensors")


class Config(StochasticDepthConfig):
    """Dimensions and weights of a small ViT.

    Attributes:
        image_size_px: Side of the image for which the position embeddings are made.
        weights: ``bundled`` weights ship with the package, for the default dimensions; ``python -m
            toco pretrain`` made them. A path reads a file. ``null`` starts from random weights.
    """

    name: str = "vit_nano"
    width: int = Field(default=64, gt=0)
    depth: int = Field(default=12, gt=0)
    num_heads: int = Field(default=4, gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)
    patch_size_px: int = Field(default=8, gt=0)
    image_size_px: int = Field(default=64, gt=0)
    weights: str | None = Field(default=BUNDLED, json_schema_extra={PLACE: [BUNDLED]})

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} cannot be divided among num_heads {self.num_heads}"
            )
        if self.image_size_px % self.patch_size_px:
            raise ValueError(
                f"image_size_px {self.image_size_px} is no multiple of patch_size_px "
                f"{self.patch_size_px}"
            )
        if self.drop_path and self.depth == 1:
            raise ValueError(
                f"drop_path is {self.drop_path}, but the first block drops nothing and depth is 1; "
                "set drop_path to 0"
            )
        return self

    def dimensions(self) -> Dimensions:
        """See the base class."""
        return Dimensions(self.depth, self.patch_size_px)


def build(config: Config) -> ViT:
    """Build the backbone that ``config`` describes.

    Raises:
        ValueError: The weights do not fit the dimensions.
    """
    # Imported late: naming a backbone needs no torch.
    import toco.backbones._torchvision  # noqa: F401 - must come before timm
    from toco.backbones._vit import ViT
    from toco.backbones._weights import load_file

    from timm.models import VisionTransformer  # isort: skip

    vit = VisionTransformer(
        img_size=config.image_size_px,
        patch_size=config.patch_size_px,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=0,
        drop_path_rate=config.drop_path,
        dynamic_img_size=True,
    )
    backbone = ViT(vit, config.pixel_mean, config.pixel_std)
    if (path := weights_path(config)) is not None:
        load_file(vit, path, entry=split_entry(str(config.weights))[1])
    return backbone


def weights_path(config: Config) -> Path | None:
    """Path of the file of weights, or ``None`` for random weights."""
    if config.weights is None:
        return None
    return BUNDLED_WEIGHTS if config.weights == BUNDLED else split_entry(config.weights)[0]
