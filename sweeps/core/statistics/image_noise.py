"""Noise of the test set: the spread over draws of images.

The trained networks are fixed.

The method is a paired bootstrap over stored confusion matrices. This noise is reported apart from
the noise of training, and no p value depends on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sweeps.core.statistics.paired import CONFIDENCE, Floats

CHUNK = 256
"""Number of resamples that are computed at once.

On VOC val, weights (256 x 1449) and matrices (256 x 441) together take 4 MB.
"""

Counts = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class ImageInterval:
    """A difference with its interval over draws of test images, for fixed trained networks."""

    difference: float
    low: float
    high: float


def resampled_iou(confusions: Counts, resamples: int = 2000, seed: int = 0) -> Floats:
    """Compute the IoU of each class on resampled images.

    All seeds, and all arrays over the same number of images, use the same resamples. The results of
    two rows are therefore paired.

    Args:
        confusions: Confusion matrices ``[seeds, images, classes, classes]``; rows are ground truth.
        resamples: Number of resamples; each draws as many images as exist, with replacement.
        seed: Seed of the draws.

    Returns:
        IoU as ``[seeds, 1 + resamples, classes]``; entry 0 is the original set of images. NaN where
        no image of a resample has the class.

    Raises:
        ValueError: The shape is wrong, or there is no image.
    """
    if confusions.ndim != 4 or confusions.shape[2] != confusions.shape[3] or 0 in confusions.shape:
        raise ValueError(
            "Expected confusion matrices of images, [seeds, images, classes, classes] "
            f"with nothing empty; got {list(confusions.shape)}."
        )
    num_seeds, num_images, num_classes, _ = confusions.shape
    # An image has few classes, so most of its matrix is zero. Sparse products are many times faster
    # than dense ones.
    counts = [
        sparse.csr_array(of_seed.reshape(num_images, -1).astype(np.float64)).T.tocsr()
        for of_seed in confusions
    ]
    iou = np.empty((num_seeds, 1 + resamples, num_classes))
    generator = np.random.default_rng(seed)
    for start in range(0, 1 + resamples, CHUNK):
        size = min(CHUNK, 1 + resamples - start)
        weights = generator.multinomial(
            num_images, np.full(num_images, 1 / num_images), size
        ).astype(np.float64)
        if start == 0:
            weights[0] = 1.0
        for index, of_seed in enumerate(counts):
            total = (of_seed @ weights.T).reshape(num_classes, num_classes, size)
            iou[index, start : start + size] = _iou(np.moveaxis(total, 2, 0))
    return iou


def difference_interval(row: Floats, base: Floats, confidence: float = CONFIDENCE) -> ImageInterval:
    """Compute the interval of the difference in mIoU between a row and its base.

    The difference is the mean over seeds.

    Args:
        row: IoU of the row, from :func:`resampled_iou`.
        base: IoU of the base, from :func:`resampled_iou`.
        confidence: Probability that the interval covers.

    Raises:
        ValueError: The two are of different shapes.
    """
    _check_pair(row, base)
    interval = _interval((_mean_iou(row) - _mean_iou(base)).mean(axis=0), confidence)
    if interval is None:
        raise ValueError(
            "No image has a ground truth pixel, so there is no mIoU. Check the confusion matrices."
        )
    return interval


def class_difference_intervals(
    row: Floats, base: Floats, confidence: float = CONFIDENCE
) -> tuple[ImageInterval | None, ...]:
    """Compute the interval of :func:`difference_interval` for each class.

    A class that the ground truth does not contain has ``None``.
    """
    _check_pair(row, base)
    return tuple(_interval(of_class, confidence) for of_class in (row - base).mean(axis=0).T)


def _iou(matrices: Floats) -> Floats:
    right = np.diagonal(matrices, axis1=-2, axis2=-1)
    true, predicted = matrices.sum(-1), matrices.sum(-2)
    union = true + predicted - right
    iou: Floats = np.divide(right, union, out=np.full_like(union, np.nan), where=true > 0)
    return iou


def _mean_iou(iou: Floats) -> Floats:
    present = ~np.isnan(iou)
    count = present.sum(axis=-1)
    total = np.where(present, iou, 0.0).sum(axis=-1)
    mean: Floats = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return mean


def _check_pair(row: NDArray[Any], base: NDArray[Any]) -> None:
    if row.shape != base.shape:
        raise ValueError(
            "A row and its base are compared over the same seeds, images and classes; "
            f"got {list(row.shape)} and {list(base.shape)}."
        )


def _interval(differences: Floats, confidence: float) -> ImageInterval | None:
    if math.isnan(differences[0]):
        return None
    low, high = np.nanquantile(differences[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    return ImageInterval(float(differences[0]), float(low), float(high))
