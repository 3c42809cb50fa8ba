"""Axis letters, and the values without tensors that the parts of a run agree on.

Axis letters, everywhere in this project: ``b`` image, ``k`` foreground class, ``s`` = k + 1 classes
with the background first, ``c`` channel, ``h w`` pixels, ``p q`` patch grid, ``n`` = p * q patches,
``v`` view.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

IGNORE_INDEX = 255
"""Label of a pixel (or of a pair of patches) that no loss and no metric counts."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Every batch is normalised with these, of pixels in [0, 1], R, G and B."""

ExtraView = Literal["second_view", "crop_source"]
"""A view of a training batch that is made for methods that use it."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Which of ``world_size`` equal parts of a whole (a global batch, a split) a process works on."""

    rank: int = 0
    world_size: int = 1
