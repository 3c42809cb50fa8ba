"""Settings of the methods whose pseudo labels are a CAM, cut at two thresholds and refined by PAR."""

from __future__ import annotations

from pydantic import Field, model_validator

from toco.cam.par import ParConfig
from toco.methods._method import LabelRule, MethodConfig


class CamLabelsConfig(MethodConfig):
    """The CAM of training steps, and the pseudo labels that are made of it.

    Attributes:
        loss_group_size: See the base class; the official GPUs of ToCo have two images each.
        low_threshold: CAM values up to this are certain background.
        high_threshold: CAM values from this on are certain foreground.
        cam_scales: Input scales of the CAM in training; scale 1 is always among them.
        cam_flip: Also take the CAM of the mirrored image.
        par: Refinement of the pseudo labels.
    """

    loss_group_size: int | None = Field(default=2, gt=0)
    low_threshold: float = Field(default=0.25, ge=0, le=1)
    high_threshold: float = Field(default=0.7, ge=0, le=1)
    cam_scales: tuple[float, ...] = (1.0, 0.5, 1.5)
    cam_flip: bool = True
    par: ParConfig = ParConfig()

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> CamLabelsConfig:
        if self.low_threshold > self.high_threshold:
            raise ValueError(
                f"low_threshold is {self.low_threshold}, above high_threshold {self.high_threshold}: "
                "nothing would be uncertain and labels would overwrite each other"
            )
        if any(scale <= 0 for scale in self.cam_scales):
            raise ValueError(f"cam_scales must be positive, got {self.cam_scales}")
        return self

    def label_rule(self) -> LabelRule:
        """See the base class."""
        return LabelRule(self.low_threshold, self.high_threshold, self.par)

    def network_sides_px(self, crop_size_px: int) -> dict[str, float]:
        """See the base class."""
        return {"cam_scales": crop_size_px * max(self.cam_scales, default=1.0)}
