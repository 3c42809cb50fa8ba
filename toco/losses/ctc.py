"""Class token contrast (CTC) of local crops with the global views.

The class tokens of crops of an object agree with the image's token, those of background crops do
not.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

EPSILON = 1e-4
"""Official epsilon, added to the sum of the negatives and to the number of positives."""


def class_token_contrast_loss(
    student: Float[Tensor, "vb d"],
    teacher: Float[Tensor, "gb d"],
    is_positive: Bool[Tensor, "b v"],
    temperature: float,
) -> Float[Tensor, ""]:
    """InfoNCE of the teacher's global views against all student views of the same image.

    With the logits ``l[g, v] = teacher[g] . student[v] / temperature`` (raw dot products, as in the
    official code) and ``N[g]`` the sum of ``exp(l[g, v])`` over the negative views, the loss of an
    image is::

        (  sum over g and positive v of -log( exp(l) / (exp(l) + N + 1e-4) )
         + sum over g of log(1 + N + 1e-4) )
        / number of global views / (number of positive views + 1e-4)

    and the loss is the mean over images. The second sum is the result of a for/else in the official
    code. It is always added, as if each global view had one more positive with logit 0, and pushes
    the negatives down even where no local crop is positive.

    All terms are computed from ``L = log(N + 1e-4)``, a log-sum-exp: the fraction is ``sigmoid(l -
    L)`` and the extra term ``-log(sigmoid(0 - L))``. The value is the same, and no exponential
    overflows at small temperatures.

    Args:
        student: Projected class tokens of all views, crop-major: all images of the first view, then
            of the second.
        teacher: Projected class tokens of the global views, crop-major. Pass it detached.
        is_positive: Whether a view shows the image's objects. The global views come first and are
            positive.
        temperature: Divides the dot products.

    Raises:
        ValueError: The rows are not whole views of the batch, or the temperature is not positive.

    Source: Ru et al., "Token Contrast for Weakly-Supervised Semantic Segmentation" (CVPR 2023),
    class token contrast; epsilons, extra term and denominators as in the official losses.py.
    """
    num_images, num_views = is_positive.shape
    if student.shape[0] != num_views * num_images or teacher.shape[0] % num_images:
        raise ValueError(
            f"is_positive says {num_images} images with {num_views} views, so the student needs "
            f"{num_views * num_images} rows and the teacher a multiple of {num_images}; "
            f"they have {student.shape[0]} and {teacher.shape[0]}."
        )
    if temperature <= 0:
        raise ValueError(
            f"The temperature divides the logits and must be positive, but is {temperature}."
        )

    student_views = student.reshape(num_views, num_images, -1)
    teacher_views = teacher.reshape(-1, num_images, teacher.shape[1])
    logits = torch.einsum("gbd,vbd->bgv", teacher_views, student_views) / temperature
    is_positive_view = is_positive[:, None, :]

    negatives = logits.masked_fill(is_positive_view, -torch.inf)
    constant = logits.new_full((*logits.shape[:2], 1), math.log(EPSILON))
    log_negatives = torch.cat([negatives, constant], dim=2).logsumexp(dim=2, keepdim=True)

    positive_terms = torch.where(is_positive_view, -F.logsigmoid(logits - log_negatives), 0).sum(
        dim=(1, 2)
    )
    extra_terms = -F.logsigmoid(-log_negatives).sum(dim=(1, 2))
    num_global_views = teacher_views.shape[0]
    num_positives = is_positive.sum(dim=1, dtype=logits.dtype)
    per_image: Tensor = (
        (positive_terms + extra_terms) / num_global_views / (num_positives + EPSILON)
    )
    return per_image.mean()
