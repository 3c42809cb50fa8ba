"""Labels from CAMs: by one threshold for the evaluation, by two for training.

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
    """Class of a pixel by its CAM score.

    The values matter: a crop is positive if the mean of its values is high enough.
    """

    BACKGROUND = 0
    UNCERTAIN = 1
    FOREGROUND = 2


def mask_absent_classes(
    cam: Float[Tensor, "b k h w"], class_labels: Float[Tensor, "b k"]
) -> Float[Tensor, "b k h w"]:
    """Set the maps of classes that the image does not contain to 0."""
    return cam * class_labels[:, :, None, None]


def cam_to_label(
    cam: Float[Tensor, "b k h w"], class_labels: Float[Tensor, "b k"], background_threshold: float
) -> Integer[Tensor, "b h w"]:
    """The present class with the highest score, or 0 up to the threshold.

    Ids are 1..k; the first class wins a tie. The evaluation compares this label with the ground
    truth.

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
    """Label certain pixels with a class or 0, and all others with 255.

    A pixel gets its best present class where the score is above ``high_threshold``, and 0 where the
    score is at most ``low_threshold``. Pixels outside the box get 255. The affinity of patch tokens
    is computed from this label.

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
    """Merge the labels that win against a low and against a high background score.

    A pixel gets the class that wins against the high score. It gets 0 where the background wins
    even with the low score, and 255 where the two labels disagree.

    Source: official camutils.py, ``refine_cams_with_bkg_v2``, and ``tools/infer_cam_crf_label.py``.

    >>> where_certain(torch.tensor([[[0, 2, 2]]]), torch.tensor([[[0, 0, 2]]])).tolist()
    [[[0, 255, 2]]]
    """
    background_or_not = torch.where(against_low == 0, 0, IGNORE_INDEX)
    return torch.where(against_high == 0, background_or_not, against_high)


def class_ids(
    label: Integer[Tensor, "b h w"], present: Integer[Tensor, "b m"]
) -> Integer[Tensor, "b h w"]:
    """Translate numbers of an image's present classes into ids of all classes.

    Labels 1..m number the classes in ``present``; 0 and 255 stay.

    >>> class_ids(torch.tensor([[[0, 1, 2, 255]]]), torch.tensor([[3, 7]])).tolist()
    [[[0, 4, 8, 255]]]
    """
    ids = torch.cat([torch.zeros_like(present[:, :1]), present + 1], dim=1)
    is_class = label != IGNORE_INDEX
    translated = ids.gather(1, torch.where(is_class, label, 0).flatten(1).long()).view_as(label)
    return torch.where(is_class, translated, IGNORE_INDEX)


def ignore_outside(
    label: Integer[Tensor, "b h w"], valid_box: Integer[Tensor, "b 4"]
) -> Integer[Tensor, "b h w"]:
    """Set the label outside the box to 255."""
    height, width = label.shape[-2:]
    return label.masked_fill(~inside(valid_box, height, width), IGNORE_INDEX)


def scale_box(
    valid_box: Integer[Tensor, "b 4"], from_size: tuple[int, int], to_size: tuple[int, int]
) -> Integer[Tensor, "b 4"]:
    """Map the box to another grid over the same image, by the centres of the cells.

    A cell belongs to the box if the centre of the cell does. The official code applies the pixel
    box to the token grid unscaled, which ignores almost every token of a padded image. This
    function corrects that.

    >>> box = torch.tensor([[60, 448, 0, 100]])
    >>> scale_box(box, from_size=(448, 448), to_size=(28, 28)).tolist()
    [[4, 28, 0, 6]]
    """

    def first_cell(edge: Tensor, source: int, target: int) -> Tensor:
        # The first cell i whose centre (i + 1/2) * source / target is >= edge is i = ceil(edge *
        # target / source - 1/2). Computed in whole numbers, so that a centre exactly on the edge
        # does not depend on rounding; -(-a // b) is the ceiling.
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
            "Background is below the low threshold and foreground above the high one, but low is "
            f"{low_threshold} and high is {high_threshold}. Swap them."
        )
