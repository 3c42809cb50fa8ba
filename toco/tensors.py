"""The tensors that travel between the parts of a run. Axis letters are those of :mod:`toco.types`."""

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
    """What one training step gets from the loader. Images are normalised with the ImageNet mean and std.

    Attributes:
        images: First global view; the classifier, the CAMs and the decoder see this one.
        second_view: Second global view; ``None`` where the method does not use it.
        crop_source: The crop of ``images`` with its own colours, to cut local crops from; ``None``
            likewise.
        class_labels: Multi-hot image-level labels without background, 0.0 or 1.0.
        valid_box: Rows ``y0 y1`` and columns ``x0 x1`` (half-open, pixels) of the image inside its
            padded crop.
        names: Name of every image, for messages.
        present: What :func:`present_classes` says of the labels, found on the host so that no
            device is waited for.
        shard: Which consecutive part of the global batch these images are.
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
        """The same batch on ``device`` (copies are asynchronous where the memory is pinned)."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=True)
            if isinstance(value := getattr(self, f.name), Tensor)
            else value
            for f in fields(self)
        }
        return Batch(**moved)


def present_classes(class_labels: Float[Tensor, "b k"]) -> Int[Tensor, "b m"]:
    """0-based classes of every image, ascending; ``m`` is the most that one image has, at least 1.

    Images with fewer are filled up with absent classes, whose label is 0 and whose maps therefore
    count for nothing.

    >>> present_classes(torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])).tolist()
    [[1, 3], [0, 2]]
    """
    most = max(int(class_labels.count_nonzero(dim=1).max()), 1)
    first = (class_labels == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return first.sort(dim=1).values


@dataclass(frozen=True, slots=True)
class Features:
    """One forward pass of a backbone.

    Attributes:
        class_token: Class token of every image, after the final norm.
        features: Patch tokens of the last block after the final norm, as a map, of the images whose
            maps were wanted.
        aux_features: Patch tokens of the auxiliary block of these images, before the final norm
            (after it, if that block is the last). They may have other channels, but lie on the same
            grid.
    """

    class_token: Float[Tensor, "images c"]
    features: Float[Tensor, "b c p q"]
    aux_features: Float[Tensor, "b d p q"]


@dataclass(frozen=True, slots=True)
class Cams:
    """Class activation maps in [0, 1], min-max normalised per class.

    The maps are those of all classes or, where a caller named some, of these in the order in which
    they were named.

    Attributes:
        cam: The maps that pseudo labels are made of.
        further: Other maps of the same classes that the method makes, by name, such as ``aux_cam``.
            Scores, pictures and files carry the name, which ends in ``_cam``.

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
        """All maps, ``cam`` first."""
        return {"cam": self.cam, **self.further}


@dataclass(frozen=True, slots=True)
class Prediction:
    """All that a method says of a batch of images, in float32, without knowledge of their labels.

    Attributes:
        cams: CAMs at the size of the input, of the classes that the caller named, or of all.
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
    """Named losses of one training step, before weighting, with the weights that hold at this step.

    Attributes:
        losses: Scalar tensors by term. A term whose weight is 0 at this step may be absent.
        weights: Weight of every term present in ``losses``.
        counts: Numbers worth logging that are not losses (ignored affinities, positive crops, ...).
    """

    losses: dict[str, Float[Tensor, ""]]
    weights: dict[str, float]
    counts: dict[str, Float[Tensor, ""]] = field(default_factory=dict)

    @property
    def total(self) -> Float[Tensor, ""]:
        """Weighted sum of all terms: what is differentiated."""
        return torch.stack([self.weights[name] * loss for name, loss in self.losses.items()]).sum()
