"""Affinity of patch pairs, from a pseudo label on the patch grid."""

from __future__ import annotations

import torch
from jaxtyping import Integer
from torch import Tensor

from toco.types import IGNORE_INDEX


def affinity(label: Integer[Tensor, "b h w"]) -> Integer[Tensor, "b n n"]:
    """Pairwise affinity of patches: 1 for the same label, 0 for different labels.

    A pair is 255 (ignored) where either patch is ignored, and so is a patch with itself. Two
    background patches have the same label. The matrix is stored as bytes: at 448 px and patch 16 it
    has 600 000 entries an image.

    >>> affinity(torch.tensor([[[3, 3, 0, 255]]])).tolist()
    [[[255, 1, 0, 255], [1, 255, 0, 255], [0, 0, 255, 255], [255, 255, 255, 255]]]

    Source: official camutils.py, ``label_to_aff_mask``.
    """
    flat = label.flatten(1)
    is_ignored = flat == IGNORE_INDEX
    is_same = flat[:, :, None] == flat[:, None, :]
    is_self = torch.eye(flat.shape[1], dtype=torch.bool, device=label.device)
    is_uncounted = is_ignored[:, :, None] | is_ignored[:, None, :] | is_self
    return is_same.to(torch.uint8).masked_fill(is_uncounted, IGNORE_INDEX)
