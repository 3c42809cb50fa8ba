"""Resize images to a network's input, and maps to the size of a mask."""

from __future__ import annotations

from jaxtyping import Float, Integer, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from toco.data.views.normalise import normalise


def network_input(
    images: UInt8[Tensor, "b h w 3"], size_px: int | None
) -> Float[Tensor, "b 3 h2 w2"]:
    """Normalise images, and squash them to a square of ``size_px`` unless that is ``None``.

    The official validation squashes images of any aspect ratio (``tools/infer_cam.py``): bilinear,
    without antialias, after the normalisation.
    """
    normalised = normalise(images.permute(0, 3, 1, 2))
    return normalised if size_px is None else resize_bilinear(normalised, (size_px, size_px))


def resize_bilinear(
    maps: Float[Tensor, "b c h w"], size: tuple[int, int]
) -> Float[Tensor, "b c h2 w2"]:
    """Resize maps of scores as the official validation: half-pixel centres, no antialias."""
    if maps.shape[-2:] == size:
        return maps
    return interpolate(maps, size=size, mode="bilinear", align_corners=False)


def resize_nearest(
    label: Integer[Tensor, "b h w"], size: tuple[int, int]
) -> Integer[Tensor, "b h2 w2"]:
    """Resize label maps by nearest neighbour, which makes no new values."""
    if label.shape[-2:] == size:
        return label
    return interpolate(label[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(
        label.dtype
    )
