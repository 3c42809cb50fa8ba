"""From images of any size to the input of a network, and from maps of any size to the size of a mask."""

from __future__ import annotations

from jaxtyping import Float, Integer, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from toco.data.views.normalise import normalise


def network_input(
    images: UInt8[Tensor, "b h w 3"], size_px: int | None
) -> Float[Tensor, "b 3 h2 w2"]:
    """Normalised images, squashed to a square of ``size_px`` unless that is ``None``.

    The official validation squashes every image so, whatever its aspect ratio
    (``tools/infer_cam.py``): bilinear, without antialias, after the normalisation.
    """
    normalised = normalise(images.permute(0, 3, 1, 2))
    return normalised if size_px is None else resize_bilinear(normalised, (size_px, size_px))


def resize_bilinear(
    maps: Float[Tensor, "b c h w"], size: tuple[int, int]
) -> Float[Tensor, "b c h2 w2"]:
    """Maps of scores at another size (half-pixel centres, no antialias), as the official validation resizes them."""
    if maps.shape[-2:] == size:
        return maps
    return interpolate(maps, size=size, mode="bilinear", align_corners=False)


def resize_nearest(
    label: Integer[Tensor, "b h w"], size: tuple[int, int]
) -> Integer[Tensor, "b h2 w2"]:
    """Labels at another size, so that no value appears that was not there."""
    if label.shape[-2:] == size:
        return label
    return interpolate(label[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(
        label.dtype
    )
