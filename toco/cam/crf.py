"""The fully connected conditional random field, by mean field.

Source: Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NeurIPS
2011, as pydensecrf computes it: a Gaussian kernel of position and a bilateral one, each normalised symmetrically, and
Potts compatibility.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from toco.config import Config
from toco.filters import build, build_gaussian

_MIN_PROBABILITY = 1e-5


class CrfConfig(Config):
    """Kernels and iterations. The defaults are those of the official test (``tools/infer_seg_voc.py``).

    Attributes:
        iterations: Updates of the mean field.
        position_weight: Weight of the kernel of position.
        position_sigma: Its standard deviation, pixels.
        bilateral_weight: Weight of the kernel of position and colour.
        bilateral_sigma_xy: Its standard deviation in position, pixels.
        bilateral_sigma_rgb: And in colour, levels of 255.
        filter_name: ``lattice`` is what pydensecrf computes, ``exact`` the sums that it approximates. ``auto`` is the
            lattice on a CPU, where the exact filter takes minutes an image (time goes with the square of its pixels),
            and exact elsewhere. On photographs 97 to 99.9 % of the labels are the same.
    """

    iterations: int = Field(default=10, ge=1)
    position_weight: float = Field(default=1.0, ge=0)
    position_sigma: float = Field(default=1.0, gt=0)
    bilateral_weight: float = Field(default=4.0, ge=0)
    bilateral_sigma_xy: float = Field(default=121.0, gt=0)
    bilateral_sigma_rgb: float = Field(default=5.0, gt=0)
    filter_name: Literal["auto", "exact", "lattice"] = "auto"

    def resolved(self, device: torch.device | str) -> CrfConfig:
        """The config with ``auto`` replaced by what it means on ``device``."""
        if self.filter_name != "auto":
            return self
        return self.model_copy(update={"filter_name": "lattice" if torch.device(device).type == "cpu" else "exact"})

    def protocol(self) -> str:
        """The CRF in words."""
        return (
            f"dense CRF, {self.iterations} iterations, position {self.position_weight:g} "
            f"(sigma {self.position_sigma:g} px), bilateral {self.bilateral_weight:g} (sigma "
            f"{self.bilateral_sigma_xy:g} px, {self.bilateral_sigma_rgb:g} levels), filter {self.filter_name}"
        )


@torch.no_grad()
def dense_crf(
    images: Float[Tensor, "b 3 h w"], probabilities: Float[Tensor, "b s h w"], config: CrfConfig
) -> Float[Tensor, "b s h w"]:
    """Probabilities that agree with the edges of the images; the mean field starts from them.

    Args:
        images: Levels 0 to 255.
        probabilities: Of every class at every pixel; below 1e-5 they count as that.
        config: Kernels and iterations.
    """
    name = config.resolved(images.device).filter_name
    kernels = [
        (config.position_weight, build_gaussian(name, images, config.position_sigma)),
        (config.bilateral_weight, build(name, images, config.bilateral_sigma_rgb, config.bilateral_sigma_xy)),
    ]
    ones = torch.ones_like(images[:, :1])
    normalised = [(weight, kernel, kernel(ones).rsqrt()) for weight, kernel in kernels if weight > 0]
    log_probabilities = probabilities.clamp(_MIN_PROBABILITY, 1).log()
    q = log_probabilities.softmax(1)
    for _ in range(config.iterations):
        energy = log_probabilities.clone()
        for weight, kernel, norm in normalised:
            energy += weight * norm * kernel(norm * q)
        q = energy.softmax(1)
    return q
