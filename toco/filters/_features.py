"""The five coordinates of a pixel in which both filters measure distance."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def bilateral_features(image: Float[Tensor, "*b 3 h w"], sigma_rgb: float, sigma_xy: float) -> Float[Tensor, "*b 5 hw"]:
    """Column, row and colours of every pixel, row by row, in standard deviations of the kernel.

    The order of the coordinates is that of the official filter; the lattice depends on it.
    """
    *batch, _, height, width = image.shape
    # Tensors, because CUDA divides by a Python number through its reciprocal: the last bit would differ from the CPU's,
    # and with it, for a few pixels, the simplex of the lattice.
    per_colour, per_pixel = image.new_full((), sigma_rgb), image.new_full((), sigma_xy)
    column = torch.arange(width, dtype=image.dtype, device=image.device) / per_pixel
    row = torch.arange(height, dtype=image.dtype, device=image.device) / per_pixel
    position = torch.stack([column.expand(height, width), row[:, None].expand(height, width)])
    return torch.cat([position.expand(*batch, 2, height, width), image / per_colour], dim=-3).flatten(-2)
