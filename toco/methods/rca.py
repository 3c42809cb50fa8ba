"""Regional semantic contrast and aggregation (RCA), on any backbone.

A coarse class map divides an image into regions. Regions are contrasted with a memory of regions of
the whole data set. The memory's clusters are aggregated into the features, from which the final
class maps are made.

The official code ends with the final maps, from which labels are made in a second stage. Here the
maps can also train ToCo's decoder, so that the methods compare.

Source: Zhou et al., "Regional Semantic Contrast and Aggregation for Weakly Supervised Semantic
Segmentation", CVPR 2022, and the official code. :mod:`toco.methods._rca_parts_config` says where
the two differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from toco.methods._config import OptionalDecoderConfig, Term
from toco.methods._rca_parts_config import (
    AggregationConfig,
    MemoryConfig,
    RcaPartsConfig,
    RegionContrastConfig,
    earlier,
    inert_contrast,
    late_contrast,
)

if TYPE_CHECKING:
    from toco.backbones import Backbone
    from toco.methods._rca import Rca


class Config(OptionalDecoderConfig, RcaPartsConfig):
    """Settings of RCA; the defaults are those of the official code where it has no fault.

    Attributes:
        loss_group_size: See the base class. Partners of the region contrast are of the same group.
            Official is the whole batch of 8 images.
        aux_block: 0-based block of the coarse head; ``null`` is the last block (official).
        class_maps: ``convs``: three 3x3 convolutions and a 1x1 convolution; in the final head every
            class has a chain of its own (official). ``linear``: ToCo's classifier without bias,
            for tokens that have seen the image already.
        pooling: What makes a class score of an image: the ``mean`` of its map (official), or the
            maximum. With ``linear`` maps each channel is pooled, as in ToCo.
        coarse_weight: Weight of the coarse classification loss. The other has weight 1.
    """

    name: str = "rca"
    loss_group_size: int | None = Field(default=8, gt=0)
    aux_block: int | None = Field(default=None, ge=0)
    class_maps: Literal["convs", "linear"] = "convs"
    pooling: Literal["mean", "max"] = "mean"
    coarse_weight: float = Field(default=0.4, ge=0)
    region_contrast: RegionContrastConfig = RegionContrastConfig(start_step=2646)
    aggregation: AggregationConfig = AggregationConfig()

    @model_validator(mode="after")
    def _regions_are_trained(self) -> Config:
        self.check_maps("coarse_weight")
        return self

    @classmethod
    def small(cls) -> Config:
        """See the base class; with all parts, so that the contract test covers them."""
        return cls(
            loss_group_size=2,
            aux_block=1,
            class_maps="linear",
            decoder_width=16,
            segmentation=Term(weight=0.1, start_step=1),
            region_contrast=RegionContrastConfig(start_step=0),
            region_memory=MemoryConfig(slots=4, start="noise"),
            aggregation=AggregationConfig(centroids=2, every=10**6, num_starts=2),
        )

    def further_cams(self) -> dict[str, int | None]:
        """The CAM of the coarse head."""
        return {"aux_cam": self.aux_block}

    def late_step(self) -> int | None:
        """See the base class: the first step of the contrast or of the decoder's losses."""
        return earlier(super().late_step(), late_contrast(self.region_contrast))

    def inert_until(self, step: int) -> frozenset[str]:
        """Settings of the contrast and of the decoder's losses, before their first steps."""
        return super().inert_until(step) | inert_contrast(self.region_contrast, step)


def build(config: Config, backbone: Backbone, num_foreground_classes: int) -> Rca:
    """Build RCA on ``backbone``.

    Raises:
        ValueError: The backbone has no block ``aux_block``, or that block cannot be the auxiliary
            one.
    """
    from toco.methods._rca import Rca  # imported late: naming a method needs no torch

    return Rca(config, backbone, num_foreground_classes)


__all__ = [
    "AggregationConfig",
    "Config",
    "MemoryConfig",
    "RegionContrastConfig",
    "Term",
    "build",
]
