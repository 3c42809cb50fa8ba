"""ImageNet normalisation and its inverse."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from toco.types import IMAGENET_MEAN, IMAGENET_STD

# 255 x IMAGENET_MEAN and 255 x IMAGENET_STD, as the official code writes them. A product could
# differ in its last bit, and ``denormalise_255`` would truncate other levels.
_MEAN_255 = (123.675, 116.28, 103.53)
_STD_255 = (58.395, 57.12, 57.375)


def normalise(images: UInt8[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """Normalise pixels 0..255 with ImageNet's mean and standard deviation.

    Backbones whose weights expect another normalisation convert the result. As in the official
    code, images are padded with black before this function. So padding becomes negative, not 0.
    """
    mean, std = _column(images, IMAGENET_MEAN), _column(images, IMAGENET_STD)
    # Divide by a tensor: CUDA multiplies by the reciprocal of a Python number. The last bit would
    # differ from the CPU's, and ``denormalise_255`` would truncate other levels.
    max_level = torch.full((), 255.0, device=images.device)
    return images.float().div_(max_level).sub_(mean).div_(std)


def denormalise_255(images: Float[Tensor, "*b 3 h w"], truncate: bool) -> Float[Tensor, "*b 3 h w"]:
    """Convert normalised images back to 0..255, as float.

    Args:
        images: Normalised images.
        truncate: Whether to truncate to integer levels, as the official refinement does
            (``imutils.denormalize_img`` casts to uint8); the energy loss does not. Truncation makes
            some levels one lower: 19, 7 and 6 of 256 in R, G and B.
    """
    levels = images * _column(images, _STD_255) + _column(images, _MEAN_255)
    return levels.clamp(0, 255).trunc() if truncate else levels


def _column(images: Tensor, values: tuple[float, float, float]) -> Float[Tensor, "3 1 1"]:
    dtype = images.dtype if images.is_floating_point() else torch.float32
    # Created on the device: a copy from the host would wait for the device.
    return torch.stack(
        [torch.full((1, 1), value, dtype=dtype, device=images.device) for value in values]
    )
