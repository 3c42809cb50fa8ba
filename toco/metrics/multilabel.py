"""Scores of image-level labels."""

from __future__ import annotations

import warnings

from jaxtyping import Bool, Float
from torch import Tensor


def f1_per_image(
    class_labels: Float[Tensor, "b k"], predicted: Bool[Tensor, "b k"]
) -> Float[Tensor, " b"]:
    """F1 of every image's set of labels, 2 TP / (P + T).

    It is 0 where the image has no label and none is predicted. The official log averages this over
    the first image of every batch and adds it twice; here every image counts once.
    """
    true = class_labels > 0
    shared = (true & predicted).sum(1).double()
    return 2 * shared / (true.sum(1) + predicted.sum(1)).clamp(min=1)


def mean_average_precision(
    class_labels: Float[Tensor, "b k"], scores: Float[Tensor, "b k"]
) -> float:
    """Mean over classes of the average precision of ranking all images.

    Classes without an image are ignored.

    Returns:
        The mean in [0, 1]; NaN where no class has an image.

    Raises:
        ValueError: A score is not finite.
    """
    if not bool(scores.isfinite().all()):
        bad = int((~scores.isfinite()).any(1).sum())
        raise ValueError(
            f"The class logits of {bad} of {len(scores)} images are not finite; they cannot be ranked."
        )
    # Imported late: scikit-learn imports scipy and pandas, which takes seconds.
    from sklearn.metrics import average_precision_score

    true = (class_labels > 0).cpu()
    present = true.any(0)
    if not bool(present.any()):
        return float("nan")
    with warnings.catch_warnings():
        # scikit-learn warns of a class that every image has, whose ranking is perfect.
        warnings.simplefilter("ignore", UserWarning)
        return float(
            average_precision_score(
                true[:, present].numpy(), scores.cpu().double()[:, present].numpy()
            )
        )
