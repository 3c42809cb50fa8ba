"""Which pairs of patches belong together, by a pseudo label on the patch grid."""

from __future__ import annotations

import torch
from jaxtyping import Integer
from torch import Tensor

from toco.types import IGNORE_INDEX


def affinity(label: Integer[Tensor, "b h w"]) -> Integer[Tensor, "b n n"]:
    """1 for two patches with the same label, 0 with different ones, 255 where the pair does not count.

    A pair does not count where either patch is ignored, nor does a patch with itself. Two
    background patches count as belonging together. Bytes, because at 448 px and patch 16 the matrix
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
