"""Loss of the image-level labels."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def classification_loss(
    logits: Float[Tensor, "b k"], class_labels: Float[Tensor, "b k"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of each class, averaged over classes and images."""
    return F.multilabel_soft_margin_loss(logits, class_labels)
