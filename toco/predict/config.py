"""The settings of inference. Nothing here needs torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from toco.cam.config import CrfConfig
from toco.config import Config, Positive


class InferenceConfig(Config):
    """How an image is segmented. The defaults are the official test on PASCAL VOC.

    That on COCO is ``size_px=448, scales=(1.0, 1.25, 1.5), merge_flips="max", merge_scales="sum"``.

    Attributes:
        size_px: The image is squashed to a square of this side before it is scaled; ``None`` keeps
            its own size.
        scales: Factors of both sides at which the image passes the network.
        flip: Each scale has the mirror image pass, too.
        merge_flips: How the logits of an image and of its mirror image become one.
        merge_scales: How those of the scales do.
        crf: What refines the probabilities; ``None`` leaves them.
        tile_px: A scaled image with a longer side passes the network in square tiles of this side,
            rounded down to whole patches; ``None`` never cuts. For images that are too large for
            the memory: a network sees less of the image around a tile, so the result is another
            one.
        tile_overlap_px: Least overlap of neighbouring tiles, rounded down to whole patches. Logits
            there go over from one tile to the other.
    """

    size_px: int | None = Field(default=None, ge=16)
    scales: tuple[Positive, ...] = Field(default=(1.0, 1.5, 1.25), min_length=1)
    flip: bool = True
    merge_flips: Literal["sum", "max"] = "sum"
    merge_scales: Literal["sum", "max"] = "max"
    crf: CrfConfig | None = CrfConfig()
    tile_px: int | None = Field(default=None, ge=32)
    tile_overlap_px: int = Field(default=64, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> InferenceConfig:
        if self.tile_px is not None and 2 * self.tile_overlap_px > self.tile_px:
            raise ValueError(
                f"tile_overlap_px {self.tile_overlap_px} is more than half of tile_px {self.tile_px}; make the tiles "
                "larger or the overlap smaller"
            )
        return self

    def resolved(self, device_type: str) -> InferenceConfig:
        """The config with every ``auto`` replaced by what it means on a device, as ``cpu`` or ``cuda``."""
        return (
            self
            if self.crf is None
            else self.model_copy(update={"crf": self.crf.resolved(device_type)})
        )

    def protocol(self) -> str:
        """The protocol in words, to stand beside every number."""
        size = "their own size" if self.size_px is None else f"{self.size_px} x {self.size_px} px"
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        flips = (
            f"with mirror images, merged by {self.merge_flips} of the logits"
            if self.flip
            else "no mirror images"
        )
        tiles = (
            ""
            if self.tile_px is None
            else f" in tiles of {self.tile_px} px that overlap by {self.tile_overlap_px} px where they are larger,"
        )
        crf = "no CRF" if self.crf is None else self.crf.protocol()
        return (
            f"Images at {size}, scaled by {scales},{tiles} {flips}; scales merged by {self.merge_scales} of the logits "
            f"at the size of the image; softmax; {crf}."
        )
