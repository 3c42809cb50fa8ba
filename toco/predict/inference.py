"""Class probabilities of an image at its own size: multiple scales, mirror images, dense CRF.

The final numbers of the paper (Table 2) are made in this way, with different rules for VOC and
COCO. Sources: official ``tools/infer_seg_voc.py`` and ``tools/infer_seg_coco_ddp.py``.
"""

from __future__ import annotations

import math
from functools import partial, reduce
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from toco.cam.config import CrfConfig
from toco.cam.crf import dense_crf
from toco.evaluate.sizes import network_input, resize_bilinear
from toco.methods import Method
from toco.predict.config import InferenceConfig


def class_probabilities(
    method: Method,
    image: UInt8[ndarray, "h w 3"],
    config: InferenceConfig,
    device: torch.device | str,
) -> Float[Tensor, "s h w"]:
    """Compute the probabilities of background and classes at every pixel, on ``device``.

    Args:
        method: Method in evaluation mode, on ``device``.
        image: RGB levels, of at least one patch.
        config: Configuration of inference.
        device: Device of the network and of the CRF.

    Raises:
        ValueError: The image is smaller than a patch at one of the scales; see
            :func:`least_side_px`.
    """
    levels = torch.tensor(image, device=device)
    probabilities = network_probabilities(method, levels, config)
    return probabilities if config.crf is None else refined(levels, probabilities, config.crf)


def least_side_px(method: Method, config: InferenceConfig) -> int:
    """Return the smallest side of an image that has a patch at every scale."""
    return 1 if config.size_px is not None else math.ceil(method.patch_size_px / min(config.scales))


@torch.no_grad()
def network_probabilities(
    method: Method, image: UInt8[Tensor, "h w 3"], config: InferenceConfig
) -> Float[Tensor, "s h w"]:
    """Compute :func:`class_probabilities` without the CRF, on the image's device."""
    height, width, _ = image.shape
    normalised = network_input(image[None], config.size_px)

    def at_scale(scale: float) -> Float[Tensor, "1 s h w"]:
        rows, columns = (max(int(side * scale), 1) for side in normalised.shape[2:])
        scaled = resize_bilinear(normalised, (rows, columns))
        views = torch.cat([scaled, scaled.flip(-1)]) if config.flip else scaled
        logits = resize_bilinear(_logits(method, views, config), (height, width))
        return (
            _merge(logits[:1], logits[1:].flip(-1), config.merge_flips) if config.flip else logits
        )

    return reduce(partial(_merge, rule=config.merge_scales), map(at_scale, config.scales))[
        0
    ].softmax(0)


def refined(
    image: UInt8[Tensor, "h w 3"], probabilities: Float[Tensor, "s h w"], config: CrfConfig
) -> Float[Tensor, "s h w"]:
    """Refine the probabilities of an image by the CRF."""
    return dense_crf(image.permute(2, 0, 1)[None].float(), probabilities[None], config)[0]


def _merge(first: Tensor, second: Tensor, rule: Literal["sum", "max"]) -> Tensor:
    return first + second if rule == "sum" else torch.maximum(first, second)


def _logits(
    method: Method, images: Float[Tensor, "b 3 h w"], config: InferenceConfig
) -> Float[Tensor, "b s p q"]:
    """Compute logits on the patch grid, tile by tile if an image is larger than a tile."""
    height, width = images.shape[2:]
    if config.tile_px is None or max(height, width) <= config.tile_px:
        return method.segmentation_logits(images)
    patch = method.patch_size_px
    rows, columns = height // patch, width // patch
    tile, overlap = max(config.tile_px // patch, 1), config.tile_overlap_px // patch
    tile_rows, tile_columns = min(tile, rows), min(tile, columns)
    # The weight decreases towards the edges of a tile, which blends the tiles in an overlap.
    weight = _ramp(tile_rows, images)[:, None] * _ramp(tile_columns, images)
    total = images.new_zeros(len(images), method.num_foreground_classes + 1, rows, columns)
    weights = images.new_zeros(rows, columns)
    for top in _starts(rows, tile_rows, overlap):
        for left in _starts(columns, tile_columns, overlap):
            cut = images[
                ...,
                top * patch : (top + tile_rows) * patch,
                left * patch : (left + tile_columns) * patch,
            ]
            place = (..., slice(top, top + tile_rows), slice(left, left + tile_columns))
            total[place] += weight * method.segmentation_logits(cut)
            weights[place] += weight
    return total / weights


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return the starts of evenly spaced tiles that cover a length.

    Neighbours overlap by at least ``overlap``.

    >>> _starts(10, tile=4, overlap=1), _starts(4, tile=4, overlap=1)
    ([0, 3, 6], [0])
    """
    count = math.ceil((length - overlap) / (tile - overlap)) if length > tile else 1
    return [round(i * (length - tile) / max(count - 1, 1)) for i in range(count)]


def _ramp(length: int, like: Tensor) -> Float[Tensor, " length"]:
    """Return 1, 2, ..., 2, 1: the distances to the nearer end."""
    up = torch.arange(1, length + 1, device=like.device, dtype=like.dtype)
    return torch.minimum(up, up.flip(0))
