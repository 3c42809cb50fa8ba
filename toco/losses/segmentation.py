"""Loss of the decoder against pseudo labels."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from toco.types import IGNORE_INDEX


def segmentation_loss(
    logits: Float[Tensor, "b s h w"], label: Integer[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    """Cross-entropy with background and foreground pixels averaged separately, half each.

    The pixels of the batch are pooled. A half without pixels contributes 0 and no gradient; the
    official losses.py has the same gradient there but the value NaN. Pixels labelled 255 are
    ignored.

    Written with a gather because the backward pass of ``nll_loss`` in 2-D is not deterministic on
    CUDA.
    """
    is_background = label == 0
    is_foreground = ~is_background & (label != IGNORE_INDEX)
    class_index = torch.where(is_foreground, label, 0).long()
    cross_entropy = -logits.log_softmax(dim=1).gather(1, class_index[:, None]).squeeze(1)
    return 0.5 * _mean_over(cross_entropy, is_background) + 0.5 * _mean_over(
        cross_entropy, is_foreground
    )


def _mean_over(
    values: Float[Tensor, "b h w"], is_counted: Bool[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    return torch.where(is_counted, values, 0).sum() / is_counted.sum().clamp(min=1)
