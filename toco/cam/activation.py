"""Class activation maps: one resolution, several scales with their mirror images, and the normalisation to [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

Forward = Callable[[Float[Tensor, "images 3 h w"]], Float[Tensor, "images k p q"]]
"""Images to activation maps on the patch grid."""


def activation_maps(
    features: Float[Tensor, "b c p q"],
    classifier_weight: Float[Tensor, "k c"],
    present: Integer[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b _ p q"]:
    """Score of classes at every patch: the classifier applied to each token instead of to the pooled one.

    Args:
        features: Patch tokens.
        classifier_weight: One row for every class.
        present: Classes (0-based) whose maps are wanted, image by image; ``None`` means all ``k``.
    """
    if present is None:
        return torch.einsum("bcpq,kc->bkpq", features, classifier_weight)
    return torch.einsum("bcpq,bmc->bmpq", features, classifier_weight[present])


def normalise_cam(
    activation_sum: Float[Tensor, "b k h w"], epsilon: float = 1e-5
) -> Float[Tensor, "b k h w"]:
    """Min-max normalise every map of every image to [0, 1).

    ``epsilon`` is added to the range, so a constant map becomes 0 and the maximum stays just below
    1.

    Source: official camutils.py, ``multi_scale_cam2``.
    """
    shifted = activation_sum - activation_sum.amin(dim=(2, 3), keepdim=True)
    return shifted / (shifted.amax(dim=(2, 3), keepdim=True) + epsilon)


def multi_scale_cams(
    forward: Forward,
    images: Float[Tensor, "b 3 h w"],
    scales: Sequence[float],
    flip: bool,
    base: Float[Tensor, "b k p q"] | None = None,
) -> Float[Tensor, "b k h w"]:
    """CAMs at the images' size, summed over scales and normalised.

    Per scale: the larger of image and mirror image (mirrored back) at every pixel, then ReLU. The
    maximum is taken after the resize to pixels, as the official code does. Everything is computed
    in the images' dtype, even where ``forward`` runs in a lower one.

    Args:
        forward: Maps images of any size to activations; several sorts of them go side by side as
            channels. It is given all images of one scale at once, and all their mirror images after
            them.
        images: Normalised images.
        scales: Sizes relative to the images'; a scaled side is floored. 1.0 is always used, first,
            listed or not.
        flip: Also look at the mirror images.
        base: What ``forward(images)`` returned, where the caller has it already; that pass is then
            not repeated.

    Raises:
        ValueError: A scale is not positive, or leaves no pixel.

    Source: official camutils.py, ``multi_scale_cam2``.
    """
    if any(scale <= 0 for scale in scales):
        raise ValueError(
            f"CAM scales are positive factors of the image size, but got {list(scales)}."
        )
    height, width = images.shape[-2:]

    def to_pixels(maps: Tensor) -> Tensor:
        return F.interpolate(
            maps.to(images.dtype), size=(height, width), mode="bilinear", align_corners=False
        )

    def at_one_scale(scaled: Tensor, known: Tensor | None) -> Tensor:
        if known is None and flip:
            upright, mirrored = to_pixels(forward(torch.cat([scaled, scaled.flip(-1)]))).chunk(2)
            return torch.maximum(upright, mirrored.flip(-1)).relu()
        upright = to_pixels(forward(scaled) if known is None else known)
        if flip:
            upright = torch.maximum(upright, to_pixels(forward(scaled.flip(-1))).flip(-1))
        return upright.relu()

    total = at_one_scale(images, base)
    for scale in scales:
        if scale != 1.0:
            size = (int(scale * height), int(scale * width))
            if min(size) < 1:
                raise ValueError(
                    f"images of {height} x {width} px are empty at CAM scale {scale}; raise the scale"
                )
            scaled = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
            total = total + at_one_scale(scaled, None)
    return normalise_cam(total)
