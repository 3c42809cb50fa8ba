"""Patch token contrast (PTC): patches of one class agree, patches of different classes differ."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor


def patch_token_contrast_loss(
    features: Float[Tensor, "b c p q"], affinity: Integer[Tensor, "b n n"]
) -> Float[Tensor, ""]:
    """Mean dissimilarity of positive pairs and mean similarity of negative pairs, half each.

    Pairs with affinity 1 are positive, pairs with affinity 0 negative; others (255) are ignored.
    The similarity is the ABSOLUTE cosine, so opposite tokens count as alike. Both means run over
    the pairs of the whole batch, with 1 added to the count: without any counted pair the loss is
    0.5, with gradient 0.

    Args:
        features: Patch tokens of the last block, as a map.
        affinity: 1, 0 or 255 for every pair of the ``n = p * q`` patches of an image.

    Source: Ru et al., "Token Contrast for Weakly-Supervised Semantic Segmentation" (CVPR 2023),
    patch token contrast; absolute value and counts as in the official losses.py.
    """
    tokens = F.normalize(features.flatten(2), dim=1, eps=1e-8)
    similarity = torch.einsum("bcn,bcm->bnm", tokens, tokens).abs()
    return 0.5 * (1 - _mean_over(similarity, affinity == 1)) + 0.5 * _mean_over(
        similarity, affinity == 0
    )


def _mean_over(
    similarity: Float[Tensor, "b n n"], is_counted: Bool[Tensor, "b n n"]
) -> Float[Tensor, ""]:
    return torch.where(is_counted, similarity, 0).sum() / (is_counted.sum() + 1)
