"""Boxes on a grid of ``height x width`` pixels: rows ``y0 y1`` and columns ``x0 x1``, half-open."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def clip(boxes: Int[Tensor, "b 4"], height: int, width: int) -> Int[Tensor, "b 4"]:
    """Clip boxes to ``height x width`` pixels; a box that ends before it begins becomes empty."""
    y0, y1, x0, x1 = boxes.T
    y0, x0 = y0.clamp(0, height), x0.clamp(0, width)
    return torch.stack(
        [y0, torch.maximum(y1.clamp(max=height), y0), x0, torch.maximum(x1.clamp(max=width), x0)],
        dim=1,
    )


def full_boxes(
    num_images: int, height: int, width: int, device: torch.device
) -> Int[Tensor, "b 4"]:
    """Return boxes with all pixels, created on the device without waiting for it."""
    boxes = torch.zeros(num_images, 4, dtype=torch.long, device=device)
    boxes[:, 1], boxes[:, 3] = height, width
    return boxes


def inside(boxes: Int[Tensor, "b 4"], height: int, width: int) -> Bool[Tensor, "b h w"]:
    """Mark the pixels inside each box; a box may be empty or reach beyond the grid.

    >>> inside(torch.tensor([[0, 1, 1, 3]]), height=2, width=3).int().tolist()
    [[[0, 1, 1], [0, 0, 0]]]
    """
    y0, y1, x0, x1 = boxes.T[:, :, None]
    row = torch.arange(height, device=boxes.device)
    column = torch.arange(width, device=boxes.device)
    in_rows = (row >= y0) & (row < y1)
    in_columns = (column >= x0) & (column < x1)
    pixels: Tensor = in_rows[:, :, None] & in_columns[:, None, :]
    return pixels
