"""Regions of a CAM, and the local crops for class token contrast.

Crops are cut from uncertain and background regions. No function waits for the device: shapes are
static and no mask is used as an index.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Integer, Num
from torch import Tensor

from toco.cam.labels import Region, check_thresholds, mask_absent_classes
from toco.types import Shard


def regions(
    cam: Float[Tensor, "b k h w"],
    class_labels: Float[Tensor, "b k"],
    low_threshold: float,
    high_threshold: float,
) -> Integer[Tensor, "b h w"]:
    """The :class:`Region` of every pixel, by the best score of a present class.

    Background is up to and including ``low_threshold``, foreground from ``high_threshold`` on
    (inclusive, unlike in a pseudo label), uncertain between them.

    Raises:
        ValueError: The low threshold exceeds the high one.

    Source: official camutils.py, ``cam_to_roi_mask2``.
    """
    check_thresholds(low_threshold, high_threshold)
    score = mask_absent_classes(cam, class_labels).amax(dim=1)
    region = torch.full_like(score, Region.UNCERTAIN.value, dtype=torch.uint8)
    region = region.masked_fill(score <= low_threshold, Region.BACKGROUND.value)
    return region.masked_fill(score >= high_threshold, Region.FOREGROUND.value)


def draw_keys(
    num_images: int,
    size: tuple[int, int],
    crop_size_px: int,
    generator: torch.Generator,
    shard: Shard = Shard(),
) -> Float[Tensor, "b n"]:
    """Draw a random key for every possible centre of a crop.

    :func:`sample_crop_corners` chooses centres by these keys.

    Args:
        num_images: Images of this part of the batch.
        size: Rows and columns of the images.
        crop_size_px: Side of a crop; its centre is at least half a side from the border.
        generator: Source of the keys. They are drawn on its device, so that a CPU generator gives
            the same crops on every machine.
        shard: Part of the global batch that the images are. Keys are drawn for the global batch, so
            that an image's crops do not depend on the number of processes.
    """
    height, width = _inner_size(size, crop_size_px)
    global_batch_size = shard.world_size * num_images
    keys = torch.rand(
        global_batch_size,
        max(height, 0) * max(width, 0),
        generator=generator,
        device=generator.device,
    )
    return keys[shard.rank * num_images :][:num_images]


def sample_crop_corners(
    regions: Integer[Tensor, "b h w"], keys: Float[Tensor, "b n"], num_crops: int, crop_size_px: int
) -> Integer[Tensor, "b v 2"]:
    """Draw square crops whose centres are uncertain or background pixels.

    Returns the top-left corners (y, x). Each image gets ``num_crops`` distinct centres, all equally
    likely, in random order, at least half a crop from the border. In an image with fewer candidates
    than crops, any centre may be drawn. Padding counts as background, as in the official code.

    The candidates with the largest random keys are chosen. This has the distribution of a random
    permutation of the candidates, without a loop over images and without counting candidates on the
    host.

    Args:
        regions: Region of every pixel.
        keys: Keys from :func:`draw_keys` for these images.
        num_crops: Crops per image.
        crop_size_px: Side of a crop.

    Raises:
        ValueError: The image has no room for so many crops of this size.

    Source: official camutils.py, ``crop_from_roi_neg``.
    """
    height, width = regions.shape[-2:]
    inner_height, inner_width = _inner_size((height, width), crop_size_px)
    if min(inner_height, inner_width) < 1 or inner_height * inner_width < num_crops:
        raise ValueError(
            f"{num_crops} different crops of {crop_size_px} px do not fit into an image of "
            f"{height} x {width} px. Choose smaller or fewer local crops, or larger images."
        )
    margin = crop_size_px // 2
    inner = regions[:, margin : margin + inner_height, margin : margin + inner_width]
    is_candidate = (inner <= Region.UNCERTAIN.value).flatten(1)
    too_few = is_candidate.sum(dim=1, keepdim=True) < num_crops
    chosen = keys.masked_fill(~(is_candidate | too_few), -1.0).topk(num_crops, dim=1).indices
    # A centre is ``margin`` below and right of its corner, and the inner part starts at ``margin``.
    # An index into the inner part is therefore the corner.
    return torch.stack([chosen // inner_width, chosen % inner_width], dim=-1)


def _inner_size(size: tuple[int, int], crop_size_px: int) -> tuple[int, int]:
    """Rows and columns of the area where the centre of a crop may be."""
    margin = crop_size_px // 2
    return size[0] - 2 * margin, size[1] - 2 * margin


def crop(
    images: Num[Tensor, "b c h w"], corners: Integer[Tensor, "b v 2"], crop_size_px: int
) -> Num[Tensor, "v b c {crop_size_px} {crop_size_px}"]:
    """Cut the squares whose top-left pixels are ``corners`` (y, x).

    The result is crop-major: all images of the first crop, then of the second.
    """
    num_channels, _, width = images.shape[1:]
    offset = torch.arange(crop_size_px, device=images.device)
    y, x = corners.long()[..., None, None].unbind(dim=2)
    pixel = (y + offset[:, None]) * width + x + offset
    pixels = images.flatten(2).gather(2, pixel.flatten(1)[:, None].expand(-1, num_channels, -1))
    squares: Tensor = pixels.unflatten(2, pixel.shape[1:])
    return squares.permute(2, 0, 1, 3, 4)


def positive_crops(
    regions: Integer[Tensor, "b h w"],
    corners: Integer[Tensor, "b v 2"],
    crop_size_px: int,
    min_mean_region: float,
) -> Bool[Tensor, "b v"]:
    """Whether a crop shows enough of an object to be a positive of its image.

    A crop is positive if the mean of its region VALUES is above ``min_mean_region``: certain
    foreground (2) counts twice as much as uncertain pixels (1). Any other crop is a negative.

    Source: official camutils.py, ``crop_from_roi_neg``.
    """
    cropped = crop(regions[:, None], corners, crop_size_px)
    total = cropped.sum(dim=(2, 3, 4), dtype=torch.float32).T
    return total / crop_size_px**2 > min_mean_region
