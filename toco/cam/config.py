"""Settings of PAR, of the CRF and of labels from attention. Nothing here needs torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from toco.config import Config


class ParConfig(Config):
    """Settings of pixel-adaptive refinement (PAR); the defaults are the official ones.

    Attributes:
        iterations: Steps of propagation.
        dilations: Distances of the rings of eight neighbours, in pixels of the refined map. A pixel
            is not its own neighbour.
        colour_weight: Width of the colour kernel and of the distance kernel. With a smaller width
            only more similar colours count.
        position_weight: Share of the distance term.
        scale: Size of the refined map relative to the image; sides are rounded down.
    """

    iterations: int = Field(default=10, ge=0)
    dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24)
    colour_weight: float = Field(default=0.3, gt=0)
    position_weight: float = Field(default=0.01, ge=0)
    scale: float = Field(default=0.5, gt=0, le=1)


class CrfConfig(Config):
    """Kernels and iterations of the CRF; the defaults are those of the official test.

    Attributes:
        iterations: Updates of the mean field.
        position_weight: Weight of the position kernel.
        position_sigma: Standard deviation of the position kernel, pixels.
        bilateral_weight: Weight of the kernel of position and colour.
        bilateral_sigma_xy: Standard deviation of that kernel in position, pixels.
        bilateral_sigma_rgb: Standard deviation of that kernel in colour, levels of 255.
        filter_name: ``lattice`` is the approximation of pydensecrf, ``exact`` the sums that it
            approximates. ``auto`` is the lattice on a CPU, and exact elsewhere. On a CPU the exact
            filter takes minutes an image (time grows with the square of the number of pixels). On
            photographs 97 to 99.9 % of the labels are the same.

    Source: official ``tools/infer_seg_voc.py``.
    """

    iterations: int = Field(default=10, ge=1)
    position_weight: float = Field(default=1.0, ge=0)
    position_sigma: float = Field(default=1.0, gt=0)
    bilateral_weight: float = Field(default=4.0, ge=0)
    bilateral_sigma_xy: float = Field(default=121.0, gt=0)
    bilateral_sigma_rgb: float = Field(default=5.0, gt=0)
    filter_name: Literal["auto", "exact", "lattice"] = "auto"

    def resolved(self, device_type: str) -> CrfConfig:
        """Return the config with ``auto`` replaced by the filter for ``cpu`` or ``cuda``."""
        if self.filter_name != "auto":
            return self
        return self.model_copy(
            update={"filter_name": "lattice" if device_type == "cpu" else "exact"}
        )

    def protocol(self) -> str:
        """Describe the CRF as text."""
        return (
            f"dense CRF, {self.iterations} iterations, position {self.position_weight:g} (sigma "
            f"{self.position_sigma:g} px), bilateral {self.bilateral_weight:g} (sigma "
            f"{self.bilateral_sigma_xy:g} px, {self.bilateral_sigma_rgb:g} levels), filter "
            f"{self.filter_name}"
        )


class AttentionLabelConfig(Config):
    """Labels from accumulated attention; the defaults are those of the official RCA.

    Attributes:
        background_power: The CRF starts with the background score ``(1 - a) ** background_power``,
            where ``a`` is the highest attention of a pixel.
        crf: Kernels and iterations. The lattice is the official filter on every device. With exact
            sums up to 6 % of the pixels of a recorded label differ.
        conflict_score: A pixel is uncertain where two or more scores exceed it.
        overruled_score: Background is uncertain where the probability of a class exceeds it.
        salient_level: Background is uncertain from this saliency on, levels of 255.
        min_foreground: An image with a smaller share of certain foreground is uncertain as a whole.
    """

    background_power: float = Field(default=4.0, gt=0)
    crf: CrfConfig = CrfConfig(
        position_weight=3,
        position_sigma=3,
        bilateral_weight=10,
        bilateral_sigma_xy=80,
        bilateral_sigma_rgb=13,
        filter_name="lattice",
    )
    conflict_score: float = Field(default=0.9, ge=0, le=1)
    overruled_score: float = Field(default=0.8, ge=0, le=1)
    salient_level: int = Field(default=32, ge=0, le=255)
    min_foreground: float = Field(default=0.01, ge=0, le=1)
