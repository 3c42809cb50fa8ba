"""From CAMs to labels: the threshold of the evaluation, the two thresholds of training, and the valid box.

A score is compared with a threshold in the CAM's dtype, and equal counts as below: a float32 CAM of
exactly ``float32(0.7)`` is not above 0.7.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from toco.boxes import inside
from toco.types import IGNORE_INDEX


class Region(IntEnum):
    """What a CAM says about a pixel. The values matter: positive crops are found by their mean."""

    BACKGROUND = 0
    UNCERTAIN = 1
    FOREGROUND = 2


def mask_absent_classes(
    cam: Float[Tensor, "b k h w"], class_labels: Float[Tensor, "b k"]
) -> Float[Tensor, "b k h w"]:
    """The CAM with the maps of the classes that the image does not contain set to 0."""
    return cam * class_labels[:, :, None, None]


def cam_to_label(
    cam: Float[Tensor, "b k h w"], class_labels: Float[Tensor, "b k"], background_threshold: float
) -> Integer[Tensor, "b h w"]:
    """The present class with the highest score, or 0 where that is not above the threshold.

    Ids are 1..k; the first class wins a tie. This is the label that the evaluation compares with
    the ground truth.

    Source: official camutils.py, ``cam_to_label`` without a box.
    """
    score, class_index = mask_absent_classes(cam, class_labels).max(dim=1)
    return torch.where(score <= background_threshold, 0, class_index + 1)


def cam_to_pseudo_label(
    cam: Float[Tensor, "b k h w"],
    class_labels: Float[Tensor, "b k"],
    low_threshold: float,
    high_threshold: float,
    valid_box: Integer[Tensor, "b 4"] | None = None,
) -> Integer[Tensor, "b h w"]:
    """The best present class above ``high_threshold``, 0 up to ``low_threshold``, 255 between and outside the box.

    This is the label that the affinity of patch tokens is read from.

    Raises:
        ValueError: The low threshold exceeds the high one.

    Source: official camutils.py, ``cam_to_label`` with a box and ``ignore_mid``.
    """
    check_thresholds(low_threshold, high_threshold)
    score, class_index = mask_absent_classes(cam, class_labels).max(dim=1)
    label = torch.where(score <= high_threshold, IGNORE_INDEX, class_index + 1)
    label = torch.where(score <= low_threshold, 0, label)
    return label if valid_box is None else ignore_outside(label, valid_box)


def where_certain(
    against_low: Integer[Tensor, "b h w"], against_high: Integer[Tensor, "b h w"]
) -> Integer[Tensor, "b h w"]:
    """The labels that win against a low and against a high background score, as one label.

    A class where it wins against the high score; 0 where the background wins even with the low one;
    255 where they disagree.

    Source: official camutils.py, ``refine_cams_with_bkg_v2``, and ``tools/infer_cam_crf_label.py``.

    >>> where_certain(torch.tensor([[[0, 2, 2]]]), torch.tensor([[[0, 0, 2]]])).tolist()
    [[[0, 255, 2]]]
    """
    background_or_not = torch.where(against_low == 0, 0, IGNORE_INDEX)
    return torch.where(against_high == 0, background_or_not, against_high)


def class_ids(
    label: Integer[Tensor, "b h w"], present: Integer[Tensor, "b m"]
) -> Integer[Tensor, "b h w"]:
    """Labels that number the present classes of each image from 1, as ids of all classes; 0 and 255 stay.

    >>> class_ids(torch.tensor([[[0, 1, 2, 255]]]), torch.tensor([[3, 7]])).tolist()
    [[[0, 4, 8, 255]]]
    """
    ids = torch.cat([torch.zeros_like(present[:, :1]), present + 1], dim=1)
    is_class = label != IGNORE_INDEX
    found = ids.gather(1, torch.where(is_class, label, 0).flatten(1).long()).view_as(label)
    return torch.where(is_class, found, IGNORE_INDEX)


def ignore_outside(
    label: Integer[Tensor, "b h w"], valid_box: Integer[Tensor, "b 4"]
) -> Integer[Tensor, "b h w"]:
    """The label with everything outside the box set to 255."""
    height, width = label.shape[-2:]
    return label.masked_fill(~inside(valid_box, height, width), IGNORE_INDEX)


def scale_box(
    valid_box: Integer[Tensor, "b 4"], from_size: tuple[int, int], to_size: tuple[int, int]
) -> Integer[Tensor, "b 4"]:
    """The box on another grid over the same image: a cell belongs to it if the cell's centre does.

    The official code applies the pixel box to the token grid unscaled, which ignores almost every
    token of a padded image; this is the correction of it.

    >>> scale_box(torch.tensor([[60, 448, 0, 100]]), from_size=(448, 448), to_size=(28, 28)).tolist()
    [[4, 28, 0, 6]]
    """

    def first_cell(edge: Tensor, source: int, target: int) -> Tensor:
        # The first cell i with its centre (i + 1/2) * source / target >= edge is ceil(edge * target
        # / source - 1/2). In whole numbers, so that a centre exactly on the edge does not depend on
        # rounding; -(-a // b) is the ceiling.
        return -((source - 2 * edge * target) // (2 * source))

    rows, columns = valid_box[:, :2].long(), valid_box[:, 2:].long()
    return torch.cat(
        [first_cell(rows, from_size[0], to_size[0]), first_cell(columns, from_size[1], to_size[1])],
        dim=1,
    )


def check_thresholds(low_threshold: float, high_threshold: float) -> None:
    """Refuse thresholds in the wrong order.

    Raises:
        ValueError: The low threshold exceeds the high one.
    """
    if low_threshold > high_threshold:
        raise ValueError(
            f"Background is below the low threshold and foreground above the high one, but low is {low_threshold} "
            f"and high is {high_threshold}. Swap them."
        )
