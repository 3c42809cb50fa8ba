"""Semantic segmentation scores from one confusion matrix over a complete split.

The mIoU of PASCAL VOC uses one matrix over all pixels of the split. An average of the IoUs of
single images is a different number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from toco.types import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Scores per class; NaN for a class that the ground truth does not contain.

    Leading axes are those of the matrix. P is the number of pixels predicted as the class. T is the
    number of pixels of the class in the ground truth. TP is the number of pixels that are both.

    Attributes:
        iou: TP / (P + T - TP).
        precision: TP / P, and 0 for a class that is never predicted.
        recall: TP / T.
        fp_rate: (P - TP) / (P + T - TP): over-activation. ``iou``, ``fp_rate`` and ``fn_rate`` sum
            to 1.
        fn_rate: (T - TP) / (P + T - TP): under-activation.
        confusion_ratio: (P - TP) / TP, not bounded by 1; NaN where TP is 0.
        pixel_accuracy: Share of the counted pixels whose predicted class is correct.

    Source: MCTformer ``evaluation.py`` (the two rates), SeCo ``utils/evaluate.py`` (the confusion
    ratio).
    """

    iou: Float[Tensor, "*t s"]
    precision: Float[Tensor, "*t s"]
    recall: Float[Tensor, "*t s"]
    fp_rate: Float[Tensor, "*t s"]
    fn_rate: Float[Tensor, "*t s"]
    confusion_ratio: Float[Tensor, "*t s"]
    pixel_accuracy: Float[Tensor, "*t"]


class ConfusionMatrix:
    """Exact counts (int64) of pixels by ground truth and prediction, on the inputs' device.

    >>> confusion = ConfusionMatrix(num_classes=2)
    >>> confusion.update(torch.tensor([0, 1, 1, 255]), torch.tensor([0, 1, 0, 1]))
    >>> confusion.matrix.tolist()
    [[1, 0], [1, 1]]
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.matrix: Integer[Tensor, "s s"] = torch.zeros(
            num_classes, num_classes, dtype=torch.int64, device=device
        )

    def update(
        self, label: Integer[Tensor, "*pixels"], prediction: Integer[Tensor, "*pixels"]
    ) -> None:
        """Add pixels, counted as in :func:`confusion_by_image`."""
        self.matrix += confusion_by_image(
            label.reshape(1, 1, -1), prediction.reshape(1, 1, -1), self.num_classes
        )[0]

    def scores(self) -> ClassScores:
        """Compute all scores so far."""
        return class_scores(self.matrix)


def confusion_by_image(
    label: Integer[Tensor, "b h w"], prediction: Integer[Tensor, "b h w"], num_classes: int
) -> Integer[Tensor, "b s s"]:
    """Count the pixels of every image by (ground truth, prediction).

    Void pixels (255 in the ground truth) are ignored. Incomplete pseudo labels can be scored, too:
    pixels where the prediction is 255 are ignored, and count neither in P nor in T. A score of
    incomplete labels therefore says nothing without their coverage.

    Raises:
        ValueError: A label or a prediction is neither a class nor 255.
    """
    for side, what in ((label, "ground truth"), (prediction, "prediction")):
        check_labels(side, num_classes, what)
    void = prediction == IGNORE_INDEX
    label = torch.where(void, IGNORE_INDEX, label.long())
    return count_by_image(label, prediction.long().masked_fill(void, 0), num_classes, num_classes)


def count_by_image(
    label: Integer[Tensor, "b h w"],
    value: Integer[Tensor, "b h w"],
    num_classes: int,
    num_values: int,
) -> Integer[Tensor, "b s values"]:
    """Count the pixels of every image by (class in the ground truth, value).

    A value is any number of a pixel: its predicted class for a confusion matrix; for a curve over
    thresholds, a number for its class and the bin of its activation. Pixels with 255 in the ground
    truth are ignored.

    The inputs are not checked, since a check would make the CPU wait for the GPU's queue. Labels
    must be below ``num_classes`` or 255 (see :func:`check_labels`), values below ``num_values``.
    """
    # Void pixels are counted in an extra row, which is dropped. Filtering them would make the CPU
    # wait for the GPU, to learn their number.
    row = torch.where(label == IGNORE_INDEX, num_classes, label.long())
    image = torch.arange(len(label), device=label.device)[:, None, None]
    cells = ((image * (num_classes + 1) + row) * num_values + value).flatten()
    counts = torch.zeros(
        len(label) * (num_classes + 1) * num_values, dtype=torch.int64, device=label.device
    )
    # ``bincount`` would make the CPU wait for the GPU, to learn the length of its result. The order
    # of the additions does not matter for integers.
    counts.scatter_add_(0, cells, cells.new_ones(()).expand_as(cells))
    return counts.view(len(label), num_classes + 1, num_values)[:, :num_classes]


def class_scores(matrix: Integer[Tensor, "*t s s"]) -> ClassScores:
    """Scores of one confusion matrix or a stack of them (rows: ground truth).

    Computed in float64 on the CPU.
    """
    counts = matrix.cpu().double()
    true_positives = counts.diagonal(dim1=-2, dim2=-1)
    ground_truth, predicted = counts.sum(-1), counts.sum(-2)
    # NaN marks the classes that the ground truth does not contain, also where they were predicted.
    ground_truth = torch.where(ground_truth > 0, ground_truth, torch.nan)
    has_class = ground_truth > 0
    union = ground_truth + predicted - true_positives
    false_positives = predicted - true_positives
    return ClassScores(
        iou=true_positives / union,
        precision=torch.where(has_class, true_positives / predicted.clamp(min=1), torch.nan),
        recall=true_positives / ground_truth,
        fp_rate=false_positives / union,
        fn_rate=(ground_truth - true_positives) / union,
        confusion_ratio=torch.where(
            has_class & (true_positives > 0), false_positives / true_positives, torch.nan
        ),
        pixel_accuracy=true_positives.sum(-1) / counts.sum((-2, -1)),
    )


def mean_over_classes(values: Float[Tensor, "*t s"]) -> Float[Tensor, "*t"]:
    """Mean over the classes that have a value; NaN where none has."""
    return values.nanmean(-1)


def check_labels(label: Integer[Tensor, "*pixels"], num_classes: int, what: str) -> None:
    """Check that all labels are classes or 255.

    On a GPU this waits for queued work.

    Raises:
        ValueError: There is another value. Ignoring such pixels would hide a wrong class list.
    """
    outside = (label != IGNORE_INDEX) & ((label < 0) | (label >= num_classes))
    if bool(outside.any()):
        raise ValueError(
            f"The {what} holds the value {int(label[outside][0])}; expected 0 to {num_classes - 1} "
            f"or {IGNORE_INDEX} (void). Check the list of classes, or the masks with `python -m "
            "toco data check`."
        )
