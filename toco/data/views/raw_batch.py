"""Batch as the loader sends it to the device, before colours and normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int, Int64, UInt8
from torch import Tensor

from toco.data.views.colour_ops import Colours, change_colours
from toco.data.views.normalise import normalise
from toco.data.views.views import Views
from toco.tensors import Batch, present_classes
from toco.types import Shard

_KINDS = ("images", "second_view", "crop_source")


class Sample(NamedTuple):
    """Views, image-level label and name of one image of a batch."""

    views: Views
    class_labels: Float32[np.ndarray, " k"]
    name: str


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Batch before colour changes and normalisation.

    Its integer levels take a quarter of the bytes of the normalised images.

    Attributes:
        views: Views of every image, in the order of ``kinds``.
        colours: Colour changes of the first views, then of the second views, if any.
        class_labels: As in :class:`toco.tensors.Batch`, like the following fields.
        valid_box: Rows and columns of the image inside its padded crop.
        names: Name of every image.
        present: Classes of every image.
        shard: Part of the global batch that these images are.
        kinds: Fields of :class:`toco.tensors.Batch` that ``views`` become; other views are
            ``None``.
    """

    views: UInt8[Tensor, "views b 3 s s"]
    colours: Colours
    class_labels: Float32[Tensor, "b k"]
    valid_box: Int64[Tensor, "b 4"]
    names: tuple[str, ...]
    present: Int[Tensor, "b m"]
    shard: Shard
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, samples: Sequence[Sample], shard: Shard) -> RawBatch:
        """Collate samples, which all have the same views."""
        views, labels, names = zip(*samples, strict=True)
        kinds = tuple(kind for kind in _KINDS if getattr(views[0], kind) is not None)
        pixels = [[getattr(view, kind) for view in views] for kind in kinds]
        second_colours = [view.second_colour for view in views if view.second_colour is not None]
        class_labels = torch.from_numpy(np.stack(labels))
        return cls(
            views=torch.from_numpy(np.array(pixels)),
            colours=Colours.of([view.first_colour for view in views] + second_colours),
            class_labels=class_labels,
            valid_box=torch.from_numpy(np.stack([view.valid_box for view in views])),
            names=names,
            present=present_classes(class_labels),
            shard=shard,
            kinds=kinds,
        )

    def pin_memory(self) -> RawBatch:
        """Copy to page-locked memory."""
        return replace(
            self,
            views=self.views.pin_memory(),
            colours=self.colours.pin_memory(),
            class_labels=self.class_labels.pin_memory(),
            valid_box=self.valid_box.pin_memory(),
            present=self.present.pin_memory(),
        )

    def to(self, device: torch.device | str) -> Batch:
        """Copy to ``device``, and change colours and normalise there, all views at once.

        With pinned memory this waits neither for the copies nor for the operations.
        """
        views = self.views.to(device, non_blocking=True)
        # The crop source is the last view, and the only one whose colours do not change.
        has_source = "crop_source" in self.kinds
        colour_views = views[:-1] if has_source else views
        images, *second_views = normalise(
            change_colours(colour_views.flatten(0, 1), self.colours)
        ).split(len(self.names))
        return Batch(
            images=images,
            second_view=second_views[0] if second_views else None,
            crop_source=normalise(views[-1]) if has_source else None,
            class_labels=self.class_labels.to(device, non_blocking=True),
            valid_box=self.valid_box.to(device, non_blocking=True),
            names=self.names,
            present=self.present.to(device, non_blocking=True),
            shard=self.shard,
        )
