"""Axis letters, and constants and types without tensors that all parts share.

Axis letters in the whole project: ``b`` image, ``k`` foreground class, ``s`` = k + 1 classes with
the background first, ``c`` channel, ``h w`` pixels, ``p q`` patch grid, ``n`` = p * q patches,
``v`` view.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

IGNORE_INDEX = 255
"""Label of pixels (or of pairs of patches) that losses and metrics ignore."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Normalisation of every batch, for pixels in [0, 1], in the order R, G, B."""

ExtraView = Literal["second_view", "crop_source"]
"""View of a training batch that is only made for methods that use it."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Part ``rank`` of ``world_size`` equal parts of a global batch or a split."""

    rank: int = 0
    world_size: int = 1
