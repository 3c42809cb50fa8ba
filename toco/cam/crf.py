"""The fully connected conditional random field, by mean field.

Source: Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011, as pydensecrf computes it: a Gaussian kernel of position and a bilateral
one, each normalised symmetrically, and Potts compatibility.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from toco.cam.config import CrfConfig
from toco.filters import build, build_gaussian

_MIN_PROBABILITY = 1e-5


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
    name = config.resolved(images.device.type).filter_name
    kernels = [
        (config.position_weight, build_gaussian(name, images, config.position_sigma)),
        (
            config.bilateral_weight,
            build(name, images, config.bilateral_sigma_rgb, config.bilateral_sigma_xy),
        ),
    ]
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
