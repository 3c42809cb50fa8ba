"""Tensors that the parts of a run exchange. Axis letters are those of :mod:`toco.types`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toco.types import Shard


@dataclass(frozen=True, slots=True)
class Batch:
    """Input of one training step. Images are normalised with the ImageNet mean and std.

    Attributes:
        images: First global view, the input of the classifier, the CAMs and the decoder.
        second_view: Second global view; ``None`` if the method does not use it.
        crop_source: The crop of ``images`` without colour changes, from which local crops are cut;
            ``None`` if the method does not use it.
        class_labels: Multi-hot image-level labels without background, 0.0 or 1.0.
        valid_box: Rows ``y0 y1`` and columns ``x0 x1`` (half-open, pixels) of the image inside its
            padded crop.
        names: Name of every image, for messages.
        present: Result of :func:`present_classes` on the labels, computed on the host to avoid
            waiting for the device.
        shard: Consecutive part of the global batch that these images are.
    """

    images: Float[Tensor, "b 3 h w"]
    second_view: Float[Tensor, "b 3 h w"] | None
    crop_source: Float[Tensor, "b 3 h w"] | None
    class_labels: Float[Tensor, "b k"]
    valid_box: Int[Tensor, "b 4"]
    names: tuple[str, ...]
    present: Int[Tensor, "b m"]
    shard: Shard = Shard()

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to ``device``, asynchronously from pinned memory."""
        values: dict[str, Any] = {
            f.name: value.to(device, non_blocking=True)
            if isinstance(value := getattr(self, f.name), Tensor)
            else value
            for f in fields(self)
        }
        return Batch(**values)


def present_classes(class_labels: Float[Tensor, "b k"]) -> Int[Tensor, "b m"]:
    """Return the ascending 0-based classes of every image.

    ``m`` is the largest number of classes of an image, at least 1. Images with fewer classes are
    filled up with absent classes, whose label is 0 and whose maps are therefore ignored.

    >>> present_classes(torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])).tolist()
    [[1, 3], [0, 2]]
    """
    most = max(int(class_labels.count_nonzero(dim=1).max()), 1)
    first = (class_labels == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return first.sort(dim=1).values


@dataclass(frozen=True, slots=True)
class Features:
    """Result of a forward pass of a backbone.

    Attributes:
        class_token: Class token of every image, after the final norm.
        features: Patch tokens of the last block after the final norm, as a map, of the images whose
            maps were requested.
        aux_features: Patch tokens of the auxiliary block of these images, before the final norm
            (after it, if that block is the last). The number of channels may differ from
            ``features``; the grid is the same.
    """

    class_token: Float[Tensor, "images c"]
    features: Float[Tensor, "b c p q"]
    aux_features: Float[Tensor, "b d p q"]


@dataclass(frozen=True, slots=True)
class Cams:
    """Class activation maps in [0, 1], min-max normalised per class.

    There is one map per class that the caller requested, in the caller's order, or one map for each
    of all classes.

    Attributes:
        cam: Maps from which pseudo labels are made.
        further: Further maps of the same classes, by name, such as ``aux_cam``. Scores, pictures
            and files use this name, which ends in ``_cam``.

    Raises:
        ValueError: A name does not end in ``_cam``.
    """

    cam: Float[Tensor, "b k h w"]
    further: Mapping[str, Float[Tensor, "b k h w"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.further:
            if not name.endswith("_cam"):
                raise ValueError(
                    f"A CAM is named {name!r}; expected a name that ends in _cam, as in aux_cam."
                )

    def by_name(self) -> dict[str, Float[Tensor, "b k h w"]]:
        """Return all maps by name, ``cam`` first."""
        return {"cam": self.cam, **self.further}


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predictions of a method for a batch of images, in float32, without use of labels.

    Attributes:
        cams: CAMs at the size of the input, of the requested classes or of all classes.
        class_logits: Logits of the classifier.
        segmentation_logits: Logits of the decoder on the patch grid, background first; ``None``
            without a decoder.
        block_tokens: Patch tokens after every block, before the final norm except for the last.
    """

    cams: Cams
    class_logits: Float[Tensor, "b k"]
    segmentation_logits: Float[Tensor, "b s p q"] | None
    block_tokens: tuple[Float[Tensor, "b _ _"], ...]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Unweighted losses of one training step by name, with their weights at this step.

    Attributes:
        losses: Scalar tensors by term. A term with weight 0 at this step may be absent.
        weights: Weight of every term in ``losses``.
        counts: Numbers to log that are no losses (ignored affinities, positive crops, ...).

    Raises:
        ValueError: A loss has no weight.
    """

    losses: dict[str, Float[Tensor, ""]]
    weights: dict[str, float]
    counts: dict[str, Float[Tensor, ""]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if lacking := self.losses.keys() - self.weights.keys():
            raise ValueError(
                f"A training step has the losses {', '.join(sorted(lacking))} without a weight; "
                "expected a weight of each loss under the same name."
            )

    @property
    def total(self) -> Float[Tensor, ""]:
        """Return the weighted sum of all terms, which is differentiated."""
        return torch.stack([self.weights[name] * loss for name, loss in self.losses.items()]).sum()
