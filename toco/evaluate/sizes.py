"""From images of any size to the input of a network, and from maps of any size to the size of a mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from toco.data._normalize import normalise


def network_input(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], size_px: int | None, device: torch.device | str
) -> Float[Tensor, "b 3 h w"]:
    """Normalised images as one batch, squashed to a square of ``size_px`` unless that is ``None``.

    The official validation squashes every image so, whatever its aspect ratio (``tools/infer_cam.py``): bilinear,
    without antialias, after the normalisation.

    Raises:
        ValueError: The sizes differ and ``size_px`` is ``None``.
    """
    shapes = [image.shape for image in images]
    if size_px is None and len(set(shapes)) > 1:
        raise ValueError(f"Images of one batch at native size need one size; got {sorted(set(shapes))}.")
    if len(set(shapes)) == 1:
        return _squash(images, size_px, device)
    return torch.cat([_squash([image], size_px, device) for image in images])


def resize_bilinear(maps: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c h2 w2"]:
    """Maps of scores at another size (half-pixel centres, no antialias), as the official validation resizes them."""
    if maps.shape[-2:] == size:
        return maps
    return interpolate(maps, size=size, mode="bilinear", align_corners=False)


def resize_nearest(label: Integer[Tensor, "b h w"], size: tuple[int, int]) -> Integer[Tensor, "b h2 w2"]:
    """Labels at another size, so that no value appears that was not there."""
    if label.shape[-2:] == size:
        return label
    return interpolate(label[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(label.dtype)


def _squash(
    images: Sequence[UInt8[np.ndarray, "h w 3"]], size_px: int | None, device: torch.device | str
) -> Float[Tensor, "b 3 _ _"]:
    tensor = normalise(torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2))
    return tensor if size_px is None else resize_bilinear(tensor, (size_px, size_px))
