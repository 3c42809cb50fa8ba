"""Scores of image-level labels."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def f1_per_image(
    class_labels: Float[Tensor, "b k"], predicted: Bool[Tensor, "b k"]
) -> Float[Tensor, " b"]:
    """F1 of every image's set of labels, 2 TP / (P + T).

    TP is the number of labels that are predicted and true, P of those predicted, T of those true.
    An image without true and predicted labels has 0 / 0. It counts as 0, as in scikit-learn and the
    official log. That log takes only the first image of every batch, and adds its F1 twice; here
    every image counts once.
    """
    # Labels are floats 0 and 1, as the classification loss needs them.
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
        ValueError: A score is NaN or infinite.
    """
    if not bool(scores.isfinite().all()):
        bad = int((~scores.isfinite()).any(1).sum())
        raise ValueError(
            f"The class logits of {bad} of {len(scores)} images are not finite; they cannot be "
            "ranked."
        )
    # Imported late: scikit-learn imports scipy and pandas, which takes seconds.
    from sklearn.metrics import average_precision_score

    true = (class_labels > 0).cpu()
    present = true.any(0)
    if not bool(present.any()):
        return float("nan")
    return float(
        average_precision_score(true[:, present].numpy(), scores.cpu().double()[:, present].numpy())
    )
