"""Settings of inference; imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from toco.cam.config import CrfConfig
from toco.config import Config, Positive


class InferenceConfig(Config):
    """Configuration of segmentation. The defaults are the official test on PASCAL VOC.

    The official test on COCO is
    ``size_px=448, scales=(1.0, 1.25, 1.5), merge_flips="max", merge_scales="sum"``.

    Attributes:
        size_px: Side of the square to which the image is squashed before scaling; ``None`` keeps
            the image's own size.
        scales: Factors of both sides at which the network sees the image.
        flip: Whether the network also sees the mirror image at each scale.
        merge_flips: Rule that merges the logits of an image and its mirror image.
        merge_scales: Rule that merges the logits of the scales.
        crf: CRF that refines the probabilities; ``None`` for no CRF.
        tile_px: Side of square tiles, rounded down to whole patches, for scaled images with a
            longer side; ``None`` for no tiles. Use tiles for images that do not fit into memory.
            They change the result, because the network sees less context around a tile.
        tile_overlap_px: Smallest overlap of neighbouring tiles, rounded down to whole patches. In
            the overlap the logits of both tiles are blended.
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
                f"tile_overlap_px {self.tile_overlap_px} is more than half of tile_px "
                f"{self.tile_px}; make the tiles larger or the overlap smaller"
            )
        return self

    def resolved(self, device_type: str) -> InferenceConfig:
        """Replace every ``auto`` by its meaning on a device type, such as ``cpu`` or ``cuda``."""
        return (
            self
            if self.crf is None
            else self.model_copy(update={"crf": self.crf.resolved(device_type)})
        )

    def protocol(self) -> str:
        """Describe the protocol as text, for the reports of scores."""
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
            else (
                f" in tiles of {self.tile_px} px that overlap by {self.tile_overlap_px} px where "
                "they are larger,"
            )
        )
        crf = "no CRF" if self.crf is None else self.crf.protocol()
        return (
            f"Images at {size}, scaled by {scales},{tiles} {flips}; scales merged by "
            f"{self.merge_scales} of the logits at the size of the image; softmax; {crf}."
        )
