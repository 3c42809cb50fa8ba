"""Class activation maps: at one resolution, over several scales, normalised to [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

Forward = Callable[[Float[Tensor, "images 3 h w"]], Float[Tensor, "images k p q"]]
"""Function from images to activation maps on the patch grid."""


def activation_maps(
    features: Float[Tensor, "b c p q"],
    classifier_weight: Float[Tensor, "k c"],
    present: Integer[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b _ p q"]:
    """Score classes at every patch by applying the classifier to each token.

    The image's logits apply the same weight to the pooled token.

    Args:
        features: Patch tokens.
        classifier_weight: One row for every class.
        present: Classes (0-based) to score in each image; ``None`` means all ``k``.
    """
    if present is None:
        return torch.einsum("bcpq,kc->bkpq", features, classifier_weight)
    return torch.einsum("bcpq,bmc->bmpq", features, classifier_weight[present])


def normalise_cam(
    activation_sum: Float[Tensor, "b k h w"], epsilon: float = 1e-5
) -> Float[Tensor, "b k h w"]:
    """Min-max normalise every map of every image to [0, 1].

    ``epsilon`` is added to the range, so that a constant map becomes 0. The maximum is just below
    1, or 1 where the range is so large that ``epsilon`` is lost (in float32 from 256 on).

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
    """Sum CAMs at the images' size over scales, and normalise them.

    With ``flip``, the larger value of image and mirror image (mirrored back) is taken at every
    pixel of each scale, after the resize to pixels, as in the official code. ReLU follows.
    Everything is computed in the images' dtype, even where ``forward`` runs in a lower one.

    Args:
        forward: Maps images of any size to activations; several kinds of maps may be stacked as
            channels. With ``flip``, one call gets all images of a scale, followed by all their
            mirror images; where ``base`` replaces the pass of the images, the mirror images alone.
        images: Normalised images.
        scales: Sizes relative to the images; scaled sides are rounded down. Scale 1.0 is always
            used, first, whether it is listed or not.
        flip: Also use the mirror images.
        base: The result of ``forward(images)``, if the caller has it already; that pass is then
            skipped.

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

    def at_one_scale(scaled: Tensor, activations: Tensor | None) -> Tensor:
        if activations is None and flip:
            upright, mirrored = to_pixels(forward(torch.cat([scaled, scaled.flip(-1)]))).chunk(2)
            return torch.maximum(upright, mirrored.flip(-1)).relu()
        upright = to_pixels(forward(scaled) if activations is None else activations)
        if flip:
            upright = torch.maximum(upright, to_pixels(forward(scaled.flip(-1))).flip(-1))
        return upright.relu()

    total = at_one_scale(images, base)
    for scale in scales:
        if scale != 1.0:
            size = (int(scale * height), int(scale * width))
            if min(size) < 1:
                raise ValueError(
                    f"images of {height} x {width} px are empty at CAM scale {scale}; raise the "
                    "scale"
                )
            scaled = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
            total = total + at_one_scale(scaled, None)
    return normalise_cam(total)
