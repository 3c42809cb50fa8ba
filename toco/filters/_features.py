"""The coordinates of a pixel in which the filters measure distance."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def bilateral_features(image: Float[Tensor, "*b 3 h w"], sigma_rgb: float, sigma_xy: float) -> Float[Tensor, "*b 5 hw"]:
    """Column, row and colours of every pixel, row by row, in standard deviations of the kernel.

    The order of the coordinates is that of the official filter; the lattice depends on it.
    """
    *batch, _, height, width = image.shape
    position = position_features(image, sigma_xy).expand(*batch, 2, height * width)
    return torch.cat([position, (image / _scalar(image, sigma_rgb)).flatten(-2)], dim=-2)


def position_features(image: Float[Tensor, "*b 3 h w"], sigma_xy: float) -> Float[Tensor, "2 hw"]:
    """Column and row alone."""
    height, width = image.shape[-2:]
    per_pixel = _scalar(image, sigma_xy)
    column = torch.arange(width, dtype=image.dtype, device=image.device) / per_pixel
    row = torch.arange(height, dtype=image.dtype, device=image.device) / per_pixel
    return torch.stack([column.expand(height, width), row[:, None].expand(height, width)]).flatten(1)


def _scalar(image: Tensor, value: float) -> Float[Tensor, ""]:
    # A tensor, because CUDA divides by a Python number through its reciprocal: the last bit would differ from the
    # CPU's, and with it, for a few pixels, the simplex of the lattice.
    return image.new_full((), value)
