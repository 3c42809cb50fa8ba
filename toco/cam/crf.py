"""The fully connected conditional random field, solved by mean field.

It has two kernels, a Gaussian of position and a bilateral one, each normalised symmetrically, and
Potts compatibility.

Source: Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011, as implemented by pydensecrf.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from toco.cam.config import CrfConfig
from toco.filters import build, build_gaussian

# Keeps the logarithm of a probability finite.
_MIN_PROBABILITY = 1e-5


@torch.no_grad()
def dense_crf(
    images: Float[Tensor, "b 3 h w"], probabilities: Float[Tensor, "b s h w"], config: CrfConfig
) -> Float[Tensor, "b s h w"]:
    """Refine probabilities so that they follow the edges of the images.

    Args:
        images: Levels 0 to 255.
        probabilities: Probability of every class at every pixel, the start of the mean field.
            Values below 1e-5 are raised to it; their sum need not be 1.
        config: Kernels and iterations.
    """
    name = config.resolved(images.device.type).filter_name
    kernels = [
        (config.position_weight, build_gaussian(name, images, config.position_sigma)),
        (
            config.bilateral_weight,
            build(name, images, config.bilateral_sigma_rgb, config.bilateral_sigma_xy),
        ),
    ]
    # Symmetric normalisation: each kernel is divided by the root of its sums on both sides.
    ones = torch.ones_like(images[:, :1])
    normalised = [
        (weight, kernel, kernel(ones).rsqrt()) for weight, kernel in kernels if weight > 0
    ]
    log_probabilities = probabilities.clamp(_MIN_PROBABILITY, 1).log()
    q = log_probabilities.softmax(1)
    for _ in range(config.iterations):
        energy = log_probabilities.clone()
        for weight, kernel, norm in normalised:
            energy += weight * norm * kernel(norm * q)
        q = energy.softmax(1)
    return q
