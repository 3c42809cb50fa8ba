"""Regions of classes on the patch grid, and features pooled over each region.

A region belongs to one class that the image contains. ``m`` counts the classes in ``present``.

Source: RCA (Zhou et al., "Regional Semantic Contrast and Aggregation for Weakly Supervised Semantic
Segmentation", CVPR 2022), and the official code.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from toco.boxes import inside

RegionScores = Literal["softmax", "raw"]
"""What a region compares with its mean: the softmax over classes, or the class map itself."""


def region_masks(
    class_maps: Float[Tensor, "b k p q"],
    class_labels: Float[Tensor, "b k"],
    present: Integer[Tensor, "b m"],
    scores: RegionScores = "softmax",
    valid_box: Integer[Tensor, "b 4"] | None = None,
) -> Bool[Tensor, "b m p q"]:
    """Mark the patches where the score of a class is above its mean over the image.

    A flat map has no region, and neither has a class that the image does not contain. No gradient
    reaches the maps.

    Args:
        class_maps: Maps of all classes, before any softmax.
        class_labels: Multi-hot labels of the images.
        present: Classes (0-based) to compute for each image.
        scores: ``softmax`` over the classes at every patch, as in the official code; ``raw`` takes
            the class map itself.
        valid_box: Rows and columns of the patches that show the image. Patches outside are in no
            region and not in the mean.

    Source: RCA, and the official code (softmax over the classes).
    """
    class_maps = class_maps.detach()
    if scores == "softmax":
        class_maps = class_maps.softmax(dim=1)
    maps = class_maps.gather(1, present[:, :, None, None].expand(-1, -1, *class_maps.shape[2:]))
    is_present = class_labels.gather(1, present)[:, :, None, None] > 0
    if valid_box is None:
        is_valid = torch.ones_like(maps[:, :1], dtype=torch.bool)
    else:
        is_valid = inside(valid_box, *maps.shape[2:])[:, None]
    # Differences to the highest score: in a flat map they are exactly zero, and so is their mean.
    # The mean of the scores themselves may be rounded below them.
    highest = maps.masked_fill(~is_valid, -torch.inf).amax(dim=(2, 3), keepdim=True)
    below = torch.where(is_valid, maps - highest, 0.0)
    num_valid = is_valid.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    return (below > below.sum(dim=(2, 3), keepdim=True) / num_valid) & is_valid & is_present


def pool_regions(
    features: Float[Tensor, "b c p q"],
    masks: Bool[Tensor, "b m p q"],
    areas: Float[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b m c"]:
    """Average the features over each region; an empty region gives zeros.

    Args:
        features: Features on the patch grid.
        masks: Patches of each region.
        areas: Number of patches to divide by; ``None`` counts those of ``masks``.
    """
    weights = masks.to(features.dtype)
    if areas is None:
        areas = weights.sum(dim=(2, 3))
    total = torch.einsum("bcpq,bmpq->bmc", features, weights)
    return total / areas.clamp(min=1)[..., None]


def piled_masks(
    masks: Bool[Tensor, "b m p q"], is_sure: Bool[Tensor, "b m"]
) -> Bool[Tensor, "b m p q"]:
    """Intersect each region with the regions of all earlier sure classes of its image.

    This is a fault of the official memory update: it overwrites the features by their masked self,
    so that the second sure class of an image is pooled over what the first left.

    Source: official RCA code, the update of the memory.
    """
    removed = is_sure[..., None, None] & ~masks
    # Exclusive: a class is not cut by its own mask.
    num_removed = removed.cumsum(dim=1) - removed.long()
    return masks & (num_removed == 0)
