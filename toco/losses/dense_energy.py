"""Dense energy loss: nearby pixels of similar colour should get the same class.

The energy is a sum over all pairs of pixels.

Source: Tang et al., "On Regularized Losses for Weakly-supervised CNN Segmentation", ECCV 2018, with
the gate of the official ToCo code (``DenseEnergyLoss``, ``get_energy_loss``). The gradient of that
code is not the derivative of its value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor

from toco import filters
from toco.boxes import inside
from toco.losses.config import DenseEnergyConfig
from toco.types import IGNORE_INDEX


def dense_energy_loss(
    images255: Float[Tensor, "b 3 h w"],
    logits: Float[Tensor, "b s h w"],
    label: Integer[Tensor, "b h w"],
    valid_box: Int[Tensor, "b 4"],
    config: DenseEnergyConfig,
) -> Float[Tensor, ""]:
    """Energy of the softmax of full-size logits inside the box; see :func:`dense_energy`.

    Args:
        images255: Images of the logits, 0 to 255. As in the official loss, they are not rounded to
            integers.
        logits: Segmentation logits at the size of the images. The softmax is taken before
            down-scaling.
        label: Class of every pixel; 255 opens the gate.
        valid_box: Image area of each padded crop.
        config: Kernel and scale.
    """
    return dense_energy(images255, logits.softmax(dim=1), label, valid_box, config)


def dense_energy(
    images255: Float[Tensor, "b 3 h w"],
    probabilities: Float[Tensor, "b s h w"],
    label: Integer[Tensor, "b h w"],
    valid_box: Int[Tensor, "b 4"],
    config: DenseEnergyConfig,
) -> Float[Tensor, ""]:
    """Negative, gated bilateral affinity of class probabilities with themselves.

    The more the probabilities of similar pixels agree, the lower the energy. With S the down-scaled
    probabilities inside the box, G the gate and A the filter of one image, the loss is ``-weight /
    b * sum(S * G * (A S))``. It is divided by the number of images only, so it grows with the
    square of the number of pixels; the official weight of 1e-7 is for 448 px.

    The returned gradient is the official one, ``-2 * weight / b * G * (A S)`` inside the box, with
    respect to the down-scaled probabilities. The derivative of the value differs: it has ``A (G
    S)`` in place of one ``G * (A S)``, and the gate depends on the probabilities too.

    Args:
        images255: Images, 0 to 255, not rounded to integers.
        probabilities: Class probabilities of every pixel.
        label: Class of every pixel. The gate is 1 where the label is 255. Elsewhere it is one minus
            the largest probability (0 outside the box), so labelled pixels count as far as the
            prediction is unsure.
        valid_box: Rows ``y0 y1`` and columns ``x0 x1`` of the image inside its padding, as slices
            (clipped). Only these pixels count, on either side of a pair.
        config: Kernel and scale.

    Raises:
        ValueError: An image has no pixel left after down-scaling.
    """
    config = config.resolved(images255.device.type, images255.shape[2], images255.shape[3])
    height, width = (int(side * config.scale) for side in images255.shape[2:])
    if min(height, width) < 1:
        raise ValueError(
            f"images of {tuple(images255.shape[2:])} pixels are empty at scale {config.scale}: "
            "raise the scale"
        )
    small_images = F.interpolate(images255, size=(height, width), mode="nearest")
    small_probabilities = F.interpolate(
        probabilities, size=(height, width), mode="bilinear", align_corners=False
    )
    boxes = _nearest_box(valid_box, label.shape[1:], (height, width))
    small_label = _nearest(label, height, width)

    with torch.no_grad():
        region = inside(boxes, height, width).to(small_probabilities.dtype)
        gate = (region - small_probabilities.amax(dim=1)).clamp(min=0)
        gate = gate.masked_fill(small_label == IGNORE_INDEX, 1.0)
        sigma_xy = config.sigma_xy * config.scale
        kernel = filters.build(config.filter_name, small_images, config.sigma_rgb, sigma_xy, boxes)
        attraction = kernel(small_probabilities) * gate[:, None]
    energy: Float[Tensor, ""] = _OfficialEnergy.apply(  # type: ignore[no-untyped-call]
        small_probabilities, attraction, config.weight * config.energy_scale / len(images255)
    )
    return energy


class _OfficialEnergy(torch.autograd.Function):
    """``-factor * sum(probabilities * attraction)``, with gradient ``-2 * factor * attraction``.

    The energy is quadratic in the probabilities, hence the 2. The official code assumes that both
    halves of the derivative are equal. That holds for a symmetric kernel without a gate, but not
    with ToCo's gate. The official results were obtained with this gradient, so it is kept.
    """

    @staticmethod
    # The type of ctx is torch's own.
    def forward(
        ctx: Any,  # noqa: ANN401
        probabilities: Tensor,
        attraction: Tensor,
        factor: float,
    ) -> Tensor:
        ctx.save_for_backward(attraction)
        ctx.factor = factor
        energy: Tensor = -factor * (probabilities * attraction).sum()
        return energy

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (attraction,) = ctx.saved_tensors
        gradient: Tensor = -2 * ctx.factor * grad_output * attraction
        return gradient, None, None


def _nearest(
    maps: Integer[Tensor, "b h w"], height: int, width: int
) -> Integer[Tensor, "b height width"]:
    """Resize integer maps to the nearest neighbour, by the rule of ``F.interpolate``.

    ``F.interpolate`` takes no integers. The source index is floor(i * in / out).
    """
    row = torch.arange(height, device=maps.device) * maps.shape[1] // height
    column = torch.arange(width, device=maps.device) * maps.shape[2] // width
    return maps[:, row[:, None], column]


def _nearest_box(
    boxes: Int[Tensor, "b 4"], size: Sequence[int], small_size: Sequence[int]
) -> Int[Tensor, "b 4"]:
    """Boxes of the small pixels whose nearest neighbours lie in each original box.

    These are the i with y0 <= floor(i * in / out) < y1: from ceil(y0 * out / in) to before ceil(y1
    * out / in).
    """
    edges = [-(-boxes[:, edge] * small_size[edge // 2] // size[edge // 2]) for edge in range(4)]
    return torch.stack(edges, dim=1)
