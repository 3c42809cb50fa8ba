"""Token Contrast (ToCo), a single-stage method for weakly-supervised segmentation.

An auxiliary classifier on an intermediate block gives a CAM that is less over-smoothed than that of
the last block. This CAM says which pairs of final patch tokens should agree (patch token contrast,
PTC). It also says where an image is uncertain or background, so that crops from there are
contrasted with the whole image (class token contrast, CTC).

Source: Ru et al., "Token Contrast for Weakly-Supervised Semantic Segmentation", CVPR 2023.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from toco.cam.config import ParConfig
from toco.heads.config import ProjectionConfig
from toco.losses.config import DenseEnergyConfig
from toco.methods._config import Term
from toco.methods._rca_parts_config import (
    AggregationConfig,
    MemoryConfig,
    RcaPartsConfig,
    RegionContrastConfig,
    earlier,
    inert_contrast,
    late_contrast,
)
from toco.types import ExtraView

if TYPE_CHECKING:
    from toco.backbones import Backbone
    from toco.methods._toco import ToCo


class Config(RcaPartsConfig):
    """Settings of ToCo; the defaults are the paper's for VOC.

    Attributes:
        aux_block: 0-based block of the auxiliary classifier; the paper prints block 9 as #10.
        token_box: How the image area of a padded crop is mapped to the token grid for PTC.
            ``scaled`` divides the pixel box by the patch size. ``official`` slices the token grid
            with the pixel box. Once the border is as wide as the grid, that ignores every pair and
            so switches PTC off for padded images (a quirk of the official code).
        temperature: Tau of CTC.
        ema_decay: Weight of the OLD value in the teacher's moving average (the paper says
            momentum).
        num_local_crops: Local crops per image for CTC.
        local_crop_size_px: Side of a local crop.
        min_crop_region: A local crop is positive if the mean of its region values (0, 1, 2) exceeds
            this.
        aux_pseudo_labels_until_step: Before this step the decoder learns from the auxiliary CAM
            (official for COCO).
        projection: Sizes of the projection head of CTC.
        aux_weight: Weight of the auxiliary classification loss. With 0 the auxiliary CAM is
            untrained, so no other term may use it.
        ptc: Weight and first step of patch token contrast. The classification loss has weight 1.
        ctc: Weight and first step of class token contrast.
    """

    name: str = "toco"
    aux_block: int = Field(default=9, ge=0)
    token_box: Literal["scaled", "official"] = "scaled"  # noqa: S105 - not a password
    temperature: float = Field(default=0.5, gt=0)
    ema_decay: float = Field(default=0.9, ge=0, le=1)
    num_local_crops: int = Field(default=8, gt=0)
    local_crop_size_px: int = Field(default=96, gt=0)
    min_crop_region: float = Field(default=0.2, ge=0, le=2)
    aux_pseudo_labels_until_step: int = Field(default=0, ge=0)
    projection: ProjectionConfig = ProjectionConfig()
    aux_weight: float = Field(default=1.0, ge=0)
    ptc: Term = Term(weight=0.2)
    ctc: Term = Term(weight=0.5)
    segmentation: Term = Term(weight=0.1, start_step=2001)
    energy: Term = Term(weight=0.05, start_step=2001)

    @model_validator(mode="after")
    def _aux_cam_is_trained(self) -> Config:
        uses = {
            "ptc.weight": self.ptc.weight,
            "ctc.weight": self.ctc.weight,
            "aux_pseudo_labels_until_step": self.aux_pseudo_labels_until_step,
        }
        if self.aux_weight == 0 and (
            used := {name: value for name, value in uses.items() if value}
        ):
            raise ValueError(
                "aux_weight is 0, so the auxiliary CAM is that of an untrained classifier, but "
                f"{' and '.join(f'{name} is {value}' for name, value in used.items())}, which "
                "would learn from it; set these to 0, too"
            )
        return self

    @model_validator(mode="after")
    def _regions_are_trained(self) -> Config:
        self.check_maps("aux_weight")
        return self

    @classmethod
    def small(cls) -> Config:
        """See the base class; with RCA's parts, so that the contract test covers them."""
        return cls(
            aux_block=1,
            local_crop_size_px=16,
            region_contrast=RegionContrastConfig(partner="any"),
            region_memory=MemoryConfig(slots=4, start="noise"),
            aggregation=AggregationConfig(kind="linear", centroids=2, every=10**6, num_starts=2),
        )

    def check(self, batch_size: int, crop_size_px: int) -> None:
        """See the base class."""
        super().check(batch_size, crop_size_px)
        if self.local_crop_size_px > crop_size_px:
            raise ValueError(
                f"method.local_crop_size_px {self.local_crop_size_px} is larger than "
                f"views.crop_size_px {crop_size_px}"
            )

    def extra_views(self) -> frozenset[ExtraView]:
        """Both further views if CTC has a weight."""
        return frozenset({"second_view", "crop_source"} if self.ctc.weight else ())

    def further_cams(self) -> dict[str, int | None]:
        """The CAM of the auxiliary classifier."""
        return {"aux_cam": self.aux_block}

    def late_step(self) -> int | None:
        """First step of the decoder's terms or of the region contrast.

        A decoder's term without weight never joins, but its ``start_step`` counts, since a study
        may give it a weight. A region contrast without weight does not count: with a weight the
        network would have other parts.
        """
        starts = [
            t.start_step
            for t in (self.segmentation, self.energy)
            if t.weight > 0 or t.start_step > 0
        ]
        of_decoder = min(starts, default=0) or None
        return earlier(of_decoder, late_contrast(self.region_contrast))

    def inert_until(self, step: int) -> frozenset[str]:
        """All settings of the decoder's terms, as long as no such term counts.

        Until then the decoder gets zero gradients whatever the settings are: the decoder decays,
        and its moments stay zero. The same holds for settings of the region contrast.
        """
        of_contrast = inert_contrast(self.region_contrast, step)
        if any(
            term.weight > 0 and term.start_step < step for term in (self.segmentation, self.energy)
        ):
            return of_contrast
        return of_contrast | {
            "segmentation",
            "energy",
            "dense_energy",
            "aux_pseudo_labels_until_step",
        }


def build(config: Config, backbone: Backbone, num_foreground_classes: int) -> ToCo:
    """Build ToCo on ``backbone``.

    Raises:
        ValueError: The backbone has no block ``aux_block``, or that block cannot be the auxiliary
            one.
    """
    from toco.methods._toco import ToCo  # imported late: naming a method needs no torch

    return ToCo(config, backbone, num_foreground_classes)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562: an attribute that needs torch
    if name != "ToCo":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from toco.methods._toco import ToCo

    return ToCo


__all__ = [
    "AggregationConfig",
    "Config",
    "DenseEnergyConfig",
    "MemoryConfig",
    "ParConfig",
    "ProjectionConfig",
    "RegionContrastConfig",
    "Term",
    "ToCo",
    "build",
]
