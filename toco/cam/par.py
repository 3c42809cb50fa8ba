"""Pixel-adaptive refinement (PAR): spread probabilities to nearby pixels of similar colour.

Source: Ru et al., "Learning Affinity from Attention" (CVPR 2022), and the official PAR.py and
camutils.py (``refine_cams_with_bkg_v2``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor

from toco.cam.config import ParConfig
from toco.cam.labels import check_thresholds, ignore_outside, where_certain


def neighbour_affinity(
    images: Float[Tensor, "b 3 h w"], config: ParConfig
) -> Float[Tensor, "b h w m"]:
    """Compute the weight of each neighbour of every pixel.

    A pixel has ``m = 8 * len(dilations)`` neighbours. A weight has two parts. The first is a
    softmax over the neighbours of the negative squared colour difference. The difference is in
    units of the local standard deviation times ``colour_weight``, and its square is averaged over
    channels. The second part is ``position_weight`` times the same softmax of the distance. The
    weights of a pixel therefore sum to ``1 + position_weight``.

    Args:
        images: Colours in [0, 1].
        config: Neighbours and kernels.
    """
    height, width = images.shape[-2:]
    neighbours = images.flatten(2)[
        :, :, _neighbours(height, width, config.dilations, images.device)
    ]
    # Colour part. The variance is computed in two passes: several times as fast as torch.std on a
    # CPU.
    variance = (neighbours - neighbours.mean(dim=3, keepdim=True)).square().sum(dim=3) / (
        neighbours.shape[3] - 1
    )
    # 1e-8 is the official epsilon against a division by zero, here and below.
    width_of_kernel = (variance.sqrt() + 1e-8) * config.colour_weight
    difference = (neighbours - images.flatten(2)[..., None]) / width_of_kernel[..., None]
    from_colour = difference.square_().mean(dim=1).neg_().softmax(dim=2)

    # Distance part. It is rounded to single precision whatever the images' dtype, as officially.
    distance = _offsets(config.dilations, images.device).double().square().sum(dim=0).sqrt()
    distance = distance.float().to(images.dtype)
    distance = distance / (distance.std() + 1e-8) / config.colour_weight
    from_position = (-distance.square()).softmax(dim=0)
    weights: Tensor = from_colour + config.position_weight * from_position
    return weights.view(len(images), height, width, -1)


def propagate(
    maps: Float[Tensor, "b c h w"],
    affinity: Float[Tensor, "b h w m"],
    config: ParConfig,
) -> Float[Tensor, "b c h w"]:
    """Replace every value by the weighted sum of its neighbours' values, ``iterations`` times.

    An embedding bag is the fused kernel for a sum of weighted rows of a table. The values of all
    neighbours are never stored, and the sums have a fixed order.
    """
    num_images, _, height, width = maps.shape
    neighbours = _neighbours(height, width, config.dilations, maps.device)
    first_pixel = torch.arange(num_images, device=maps.device)[:, None, None] * (height * width)
    rows = (neighbours + first_pixel).flatten(0, 1)
    weights = affinity.flatten(0, 2).to(maps.dtype)
    table = maps.permute(0, 2, 3, 1).flatten(0, 2).contiguous()
    for _ in range(config.iterations):
        table = F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")
    return table.view(num_images, height, width, -1).permute(0, 3, 1, 2).contiguous()


def refined_probabilities(
    images: Float[Tensor, "b 3 h w"],
    cam: Float[Tensor, "b k h w"],
    class_labels: Float[Tensor, "b k"],
    backgrounds: Sequence[float],
    config: ParConfig,
) -> Float[Tensor, "b t s p q"]:
    """Refine class probabilities at the reduced size, for each background score.

    The probabilities are a softmax over the background score and the CAMs of the classes in the
    image. These values lie in [0, 1], so the softmax is nearly flat. An absent class has
    probability 0. The position term scales all probabilities by ``1 + position_weight`` an
    iteration, the same for all classes.

    The affinity is computed once per image, and the ``t`` backgrounds are propagated as channels.

    Raises:
        ValueError: No pixel remains at the reduced size.
    """
    size = (int(images.shape[-2] * config.scale), int(images.shape[-1] * config.scale))
    if min(size) < 1:
        raise ValueError(
            f"images of {images.shape[-2]} x {images.shape[-1]} px are empty at scale "
            f"{config.scale} of the refinement (PAR); raise the scale"
        )
    small_images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    small_cam = F.interpolate(cam, size=size, mode="bilinear", align_corners=False)
    small_cam = small_cam.masked_fill((class_labels == 0)[:, :, None, None], -torch.inf)
    probabilities = torch.stack(
        [
            F.pad(small_cam, (0, 0, 0, 0, 1, 0), value=background).softmax(dim=1)
            for background in backgrounds
        ],
        dim=1,
    )
    affinity = neighbour_affinity(small_images, config)
    return propagate(probabilities.flatten(1, 2), affinity, config).view_as(probabilities)


@torch.no_grad()
def refine_pseudo_label(
    images: Float[Tensor, "b 3 h w"],
    cam: Float[Tensor, "b k h w"],
    class_labels: Float[Tensor, "b k"],
    valid_box: Integer[Tensor, "b 4"] | None,
    low_threshold: float,
    high_threshold: float,
    config: ParConfig,
) -> Integer[Tensor, "b h w"]:
    """Refine the CAM against a low and a high background score, and make the decoder's label.

    A pixel gets the class that wins against the high background score. It gets 0 where the
    background wins even with the low score. It gets 255 where the two disagree, and outside the
    box.

    Args:
        images: Colours in [0, 1]. The official code first truncates them to the 256 levels of a
            byte; here the caller does that.
        cam: Scores in [0, 1] at the images' size; absent classes need not be masked. Maps of the
            present classes alone are cheapest: the labels then number these maps from 1.
        class_labels: Which classes the image contains.
        valid_box: Image area of a padded crop, or ``None`` if all pixels count.
        low_threshold: A pixel is background where this background score beats all classes.
        high_threshold: A pixel is foreground where a class beats this background score.
        config: Neighbours, kernels, iterations and size of the refined map.

    Raises:
        ValueError: The low threshold exceeds the high one.
    """
    check_thresholds(low_threshold, high_threshold)
    backgrounds = (low_threshold, high_threshold)
    refined = refined_probabilities(images, cam, class_labels, backgrounds, config)
    winners = []
    for probabilities in refined.unbind(dim=1):
        full_size = F.interpolate(
            probabilities, size=images.shape[-2:], mode="bilinear", align_corners=False
        )
        winners.append(_first_largest(full_size))
    label = where_certain(*winners)
    return label if valid_box is None else ignore_outside(label, valid_box)


def _first_largest(maps: Float[Tensor, "b s h w"]) -> Int[Tensor, "b h w"]:
    """``maps.argmax(dim=1)``, several times as fast on a CPU for a few maps."""
    num_maps = maps.shape[1]
    from_the_end = torch.arange(num_maps, 0, -1, device=maps.device)[:, None, None]
    is_largest = maps == maps.amax(dim=1, keepdim=True)
    # NaN equals nothing, not even itself. The value 1 then selects the last map, so that a diverged
    # step still has a label.
    return num_maps - torch.where(is_largest, from_the_end, 1).amax(dim=1)


def _offsets(dilations: Sequence[int], device: torch.device) -> Int[Tensor, "2 m"]:
    """Rows and columns from a pixel to its neighbours, ring by ring.

    Computed on the device: a copy from the host could wait for the device, and would split the CUDA
    graph of a compiled step.
    """
    ring = torch.arange(8, device=device)
    ring = ring + (ring >= 4).long()  # of the 3 x 3 pixels, without the one in the middle
    distance = torch.stack([torch.full((1,), dilation, device=device) for dilation in dilations])
    return torch.stack(
        [(distance * (ring // 3 - 1)).flatten(), (distance * (ring % 3 - 1)).flatten()]
    )


def _neighbours(
    height: int, width: int, dilations: Sequence[int], device: torch.device
) -> Int[Tensor, "n m"]:
    """Indices of every pixel's neighbours; beyond the border the border pixel is repeated."""
    offset_y, offset_x = _offsets(dilations, device)
    row = (torch.arange(height, device=device)[:, None] + offset_y).clamp_(0, height - 1)
    column = (torch.arange(width, device=device)[:, None] + offset_x).clamp_(0, width - 1)
    numbers: Tensor = row[:, None] * width + column
    return numbers.flatten(0, 1)
