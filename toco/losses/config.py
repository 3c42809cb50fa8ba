"""Settings of the dense energy loss. Nothing here needs torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from toco.config import Config


class DenseEnergyConfig(Config):
    """Kernel and scale of the energy; the defaults are the official ones.

    Attributes:
        filter_name: ``exact``, ``lattice``, or ``auto``; see :func:`toco.filters.resolve`.
        weight: Factor of the energy, besides the term's weight in the method.
        sigma_rgb: Standard deviation of the kernel in colour, levels of 255.
        sigma_xy: Standard deviation in position, in pixels before down-scaling.
        scale: Size at which the energy is computed, relative to the images.
        energy_scale: Factor on value and gradient, to make the two filters comparable. The official
            weight was chosen for the lattice. The lattice gives less than the exact sum, by nearly
            the same factor everywhere (the cosine between the gradients is 0.997). Measured on
            photographs with sigmas of 15 and 50 pixels: 0.58 to 0.63 at 224 x 224 pixels after
            down-scaling, 0.60 at 112 x 112, 0.56 at 56 x 56, 0.51 at 32 x 32. A smooth generated
            image gives 0.54, an image of a single colour 0.44. For photographs of 448 px,
            ``energy_scale=0.6`` therefore gives the exact energy the weight of the official one.
    """

    filter_name: Literal["auto", "exact", "lattice"] = "auto"
    weight: float = Field(default=1e-7, gt=0)
    sigma_rgb: float = Field(default=15.0, gt=0)
    sigma_xy: float = Field(default=100.0, gt=0)
    scale: float = Field(default=0.5, gt=0, le=1)
    energy_scale: float = Field(default=1.0, gt=0)

    def resolved(self, device_type: str, height: int, width: int) -> DenseEnergyConfig:
        """Return the config with ``auto`` replaced by the filter for this image size and device."""
        from toco import filters  # imported late: naming a filter needs no torch

        num_pixels = int(height * self.scale) * int(width * self.scale)
        chosen = filters.resolve(self.filter_name, device_type, num_pixels)
        return self.model_copy(update={"filter_name": chosen})
