"""Settings of methods, and the questions that a run asks them.

A run asks before it builds a network, so nothing here needs torch.
"""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field, model_validator

from toco.cam.config import ParConfig
from toco.config import Config, EntryConfig, Positive
from toco.losses.config import DenseEnergyConfig
from toco.types import ExtraView


class Term(Config):
    """Weight and first step (0-based) of a loss term."""

    weight: float = Field(ge=0)
    start_step: int = Field(default=0, ge=0)

    def at(self, step: int) -> float:
        """Return the weight at ``step``: 0 before ``start_step``."""
        return self.weight if step >= self.start_step else 0.0


class BilateralFilter(NamedTuple):
    """A filter of :mod:`toco.filters` that training steps build.

    ``sigma_xy`` is in pixels of the filter's input, ``sigma_rgb`` in levels of 255.
    """

    filter_name: str
    sigma_rgb: float
    sigma_xy: float


class LabelRule(NamedTuple):
    """Two thresholds and a refinement that turn a CAM into a pseudo label.

    Attributes:
        low_threshold: A pixel is background where this background score beats all classes.
        high_threshold: A pixel is foreground where a class beats this background score.
        par: Settings of the refinement (PAR).
    """

    low_threshold: float
    high_threshold: float
    par: ParConfig


class MethodConfig(EntryConfig):
    """Base of the configs in ``toco.methods``; it answers what a run asks of a method.

    A run asks before it builds the method, and so without torch.

    Attributes:
        loss_group_size: Losses are computed over groups of this many images, then averaged. Sums
            over a batch therefore do not depend on the number of GPUs, and ranks share a batch by
            whole groups. ``null`` makes the whole batch one group, which only one rank can train.
    """

    loss_group_size: int | None = Field(default=None, gt=0)

    @classmethod
    def small(cls) -> MethodConfig:
        """Return a config for the contract test: a backbone of 3 blocks, images of 32 px."""
        return cls.model_validate({})

    def check(self, batch_size: int, crop_size_px: int) -> None:
        """Check the settings against those of the run.

        Args:
            batch_size: Images per step, over all ranks.
            crop_size_px: Side of the training views.

        Raises:
            ValueError: The settings do not fit together.
        """
        if self.loss_group_size is not None and batch_size % self.loss_group_size:
            raise ValueError(
                f"batch_size {batch_size} is not a multiple of method.loss_group_size "
                f"{self.loss_group_size}; choose one that is, or set the group size to null"
            )

    def extra_views(self) -> frozenset[ExtraView]:
        """Views that training steps read besides ``Batch.images``; the loader makes no others."""
        return frozenset()

    def further_cams(self) -> dict[str, int | None]:
        """Names of the method's CAMs besides the final one.

        Each name comes with the block (0-based) whose tokens make the CAM. ``None`` is the last
        block, or says that no single block makes it.
        """
        return {}

    def has_cams_of_all_classes(self) -> bool:
        """Whether the method makes CAMs of all classes for an image without labels."""
        return True

    def has_decoder(self) -> bool:
        """Whether the method segments; without a decoder only its CAMs are evaluated."""
        return True

    def label_rule(self) -> LabelRule:
        """Return the rule from which ``export-pseudo-labels`` and the demo start.

        Raises:
            ValueError: The method does not make labels from its CAM by two thresholds.
        """
        raise ValueError(
            f"The method {self.name!r} makes no pseudo labels from its CAM by a low and a high "
            "threshold; export-cams writes its CAMs, from which other programs can make labels."
        )

    def network_sides_px(self, crop_size_px: int) -> dict[str, float]:
        """Sides of the images that training passes through the network, in pixels.

        The key is the setting that asks for the side. The crop itself may be omitted.
        """
        return {}

    def bilateral_filters(self) -> dict[str, BilateralFilter]:
        """Filters that training steps build, keyed by the setting that describes each."""
        return {}

    def resolved(self, device_type: str, crop_size_px: int) -> MethodConfig:
        """Return the config with every ``auto`` replaced by the choice for a device.

        ``device_type`` is ``cpu`` or ``cuda``.
        """
        return self

    def late_step(self) -> int | None:
        """First step (0-based) at which further loss terms join, if any join late."""
        return None

    def inert_until(self, step: int) -> frozenset[str]:
        """Paths below ``method.`` that have no effect on the first ``step`` updates.

        These settings change no bit of the weights or the optimizer's state after these updates,
        nor of evaluations and pictures before ``step``.
        """
        return frozenset()


class CamLabelsConfig(MethodConfig):
    """Settings of the CAM in training, and of the pseudo labels and decoder that use it.

    Attributes:
        loss_group_size: See the base class. The default is the official one: two images per GPU.
        low_threshold: CAM values up to this are certain background.
        high_threshold: CAM values above this are certain foreground.
        cam_scales: Input scales of the CAM in training; scale 1 is always used.
        cam_flip: Also compute the CAM of the mirrored image.
        par: Refinement of the pseudo labels.
        decoder_width: Channels between the decoder's layers.
        decoder_dilation: Dilation of the decoder's 3x3 convolutions, in patches.
        segmentation: Weight and first step of the decoder's loss on the pseudo labels.
        energy: Weight and first step of the dense energy loss on the decoder's probabilities.
        dense_energy: Kernel and scale of the dense energy loss.
    """

    loss_group_size: int | None = Field(default=2, gt=0)
    low_threshold: float = Field(default=0.25, ge=0, le=1)
    high_threshold: float = Field(default=0.7, ge=0, le=1)
    cam_scales: tuple[Positive, ...] = (1.0, 0.5, 1.5)
    cam_flip: bool = True
    par: ParConfig = ParConfig()
    decoder_width: int = Field(default=512, gt=0)
    decoder_dilation: int = Field(default=5, gt=0)
    segmentation: Term = Term(weight=0.0)
    energy: Term = Term(weight=0.0)
    dense_energy: DenseEnergyConfig = DenseEnergyConfig()

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> CamLabelsConfig:
        if self.low_threshold > self.high_threshold:
            raise ValueError(
                f"low_threshold is {self.low_threshold}, above high_threshold "
                f"{self.high_threshold}: nothing would be uncertain and labels would overwrite "
                "each other"
            )
        return self

    def label_rule(self) -> LabelRule:
        """See the base class."""
        return LabelRule(self.low_threshold, self.high_threshold, self.par)

    def network_sides_px(self, crop_size_px: int) -> dict[str, float]:
        """See the base class."""
        return {"cam_scales": crop_size_px * max(self.cam_scales, default=1.0)}

    def bilateral_filters(self) -> dict[str, BilateralFilter]:
        """The filter of the dense energy loss, if that has a weight."""
        if self.energy.weight == 0:
            return {}
        energy = self.dense_energy
        sigma_xy = energy.sigma_xy * energy.scale
        return {"dense_energy": BilateralFilter(energy.filter_name, energy.sigma_rgb, sigma_xy)}

    def resolved(self, device_type: str, crop_size_px: int) -> CamLabelsConfig:
        """See the base class; the bilateral filter of the energy is chosen for the device."""
        energy = self.dense_energy.resolved(device_type, crop_size_px, crop_size_px)
        return self.model_copy(update={"dense_energy": energy})


class OptionalDecoderConfig(CamLabelsConfig):
    """Settings of a method that has a decoder only where the segmentation loss has a weight.

    Attributes:
        segmentation: See the base class. With weight 0 there is no decoder, and the run is
            evaluated by its CAM alone.
    """

    @model_validator(mode="after")
    def _energy_has_a_decoder(self) -> OptionalDecoderConfig:
        if self.energy.weight > 0 and self.segmentation.weight == 0:
            raise ValueError(
                f"energy.weight is {self.energy.weight}, but segmentation.weight is 0, so there is "
                "no decoder whose probabilities have an energy; set energy.weight to 0, too"
            )
        return self

    def has_decoder(self) -> bool:
        """Whether the segmentation loss has a weight."""
        return self.segmentation.weight > 0

    def late_step(self) -> int | None:
        """See the base class: the first step of the decoder's losses."""
        return min(self._decoder_starts(), default=0) or None

    def inert_until(self, step: int) -> frozenset[str]:
        """The decoder's losses, before the first step of either: until then it only decays.

        A loss without weight gives zero gradients, so weight decay is the only update of the
        decoder.
        """
        starts = self._decoder_starts()
        joins_later = bool(starts) and min(starts) >= step
        return frozenset({"segmentation", "energy", "dense_energy"} if joins_later else ())

    def _decoder_starts(self) -> list[int]:
        if not self.has_decoder():
            return []
        return [term.start_step for term in (self.segmentation, self.energy) if term.weight > 0]
