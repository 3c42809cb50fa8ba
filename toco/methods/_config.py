"""The settings of methods, and what a run asks of them before a network is built. Nothing here needs torch."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field, model_validator

from toco.cam.config import ParConfig
from toco.config import Config, EntryConfig, Positive
from toco.types import ExtraView


class Term(Config):
    """One loss term: its weight, and the first step (0-based) at which it counts."""

    weight: float = Field(ge=0)
    start_step: int = Field(default=0, ge=0)

    def at(self, step: int) -> float:
        """Weight at ``step``."""
        return self.weight if step >= self.start_step else 0.0


class BilateralFilter(NamedTuple):
    """A filter of :mod:`toco.filters` that a method builds in its steps; distances are in pixels of its input."""

    filter_name: str
    sigma_rgb: float
    sigma_xy: float


class LabelRule(NamedTuple):
    """How a method makes pseudo labels of its CAM.

    Attributes:
        low_threshold: Background score that certain background wins with.
        high_threshold: Background score that certain foreground wins against.
        par: The refinement.
    """

    low_threshold: float
    high_threshold: float
    par: ParConfig


class MethodConfig(EntryConfig):
    """Base of the configs of ``toco.methods``: all that a run asks of a method before it is built.

    Attributes:
        loss_group_size: Losses are computed over groups of this many images and averaged, so that
            sums over a batch do not depend on the number of GPUs; ranks share a batch by whole
            groups. ``null`` takes the whole batch as one group, which only one rank can train.
    """

    loss_group_size: int | None = Field(default=None, gt=0)

    @classmethod
    def small(cls) -> MethodConfig:
        """A config for a backbone of 3 blocks and images of 32 px, as the contract test builds."""
        return cls.model_validate({})

    def check(self, batch_size: int, crop_size_px: int) -> None:
        """Compare the settings with those of the run.

        Args:
            batch_size: Images of a step, of all ranks together.
            crop_size_px: Side of the training views.

        Raises:
            ValueError: They do not fit together.
        """
        if self.loss_group_size is not None and batch_size % self.loss_group_size:
            raise ValueError(
                f"batch_size {batch_size} is not a multiple of method.loss_group_size "
                f"{self.loss_group_size}; choose one that is, or set the group size to null"
            )

    def extra_views(self) -> frozenset[ExtraView]:
        """Views besides ``Batch.images`` that a training step reads; the loader makes no others."""
        return frozenset()

    def further_cams(self) -> dict[str, int | None]:
        """Names of the CAMs that the method makes besides the final one.

        Each comes with the block (0-based) whose tokens it is made of, or ``None`` where that is
        not a single block.
        """
        return {}

    def has_cams_of_all_classes(self) -> bool:
        """Whether the method makes CAMs of all classes of an image whose classes nobody knows."""
        return True

    def has_decoder(self) -> bool:
        """Whether the method segments; without a decoder it is evaluated by its CAMs alone."""
        return True

    def label_rule(self) -> LabelRule:
        """The rule that ``export-pseudo-labels`` and the demo start from.

        Raises:
            ValueError: The method's labels are not made of its CAM by two thresholds.
        """
        raise ValueError(
            f"The method {self.name!r} makes no pseudo labels of its CAM by a low and a high threshold; "
            "export-cams writes its CAMs, of which other programs can make labels."
        )

    def network_sides_px(self, crop_size_px: int) -> dict[str, float]:
        """Sides of the images that training passes through the network, by the setting that asks for them.

        The crop itself need not be named.
        """
        return {}

    def bilateral_filters(self) -> dict[str, BilateralFilter]:
        """Filters that training steps build, by the setting that describes them."""
        return {}

    def resolved(self, device_type: str, crop_size_px: int) -> MethodConfig:
        """The config with every ``auto`` replaced by what it stands for on a device, as ``cpu`` or ``cuda``."""
        return self

    def late_step(self) -> int | None:
        """First step (0-based) at which terms join that had no part in the training until then, if any join late."""
        return None

    def inert_until(self, step: int) -> frozenset[str]:
        """Paths below ``method.`` that have no effect, to the bit, on the first ``step`` updates.

        Neither have they any on the optimizer's state after them, nor on evaluations and pictures
        until then.
        """
        return frozenset()


class CamLabelsConfig(MethodConfig):
    """The CAM of training steps, and the pseudo labels that are made of it.

    Attributes:
        loss_group_size: See the base class; the official GPUs of ToCo have two images each.
        low_threshold: CAM values up to this are certain background.
        high_threshold: CAM values from this on are certain foreground.
        cam_scales: Input scales of the CAM in training; scale 1 is always among them.
        cam_flip: Also take the CAM of the mirrored image.
        par: Refinement of the pseudo labels.
        decoder_width: Channels between the decoder's layers.
        decoder_dilation: Dilation of its convolutions, in patches.
    """

    loss_group_size: int | None = Field(default=2, gt=0)
    low_threshold: float = Field(default=0.25, ge=0, le=1)
    high_threshold: float = Field(default=0.7, ge=0, le=1)
    cam_scales: tuple[Positive, ...] = (1.0, 0.5, 1.5)
    cam_flip: bool = True
    par: ParConfig = ParConfig()
    decoder_width: int = Field(default=512, gt=0)
    decoder_dilation: int = Field(default=5, gt=0)

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> CamLabelsConfig:
        if self.low_threshold > self.high_threshold:
            raise ValueError(
                f"low_threshold is {self.low_threshold}, above high_threshold {self.high_threshold}: "
                "nothing would be uncertain and labels would overwrite each other"
            )
        return self

    def label_rule(self) -> LabelRule:
        """See the base class."""
        return LabelRule(self.low_threshold, self.high_threshold, self.par)

    def network_sides_px(self, crop_size_px: int) -> dict[str, float]:
        """See the base class."""
        return {"cam_scales": crop_size_px * max(self.cam_scales, default=1.0)}
