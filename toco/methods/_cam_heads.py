"""Heads that make class scores and CAM: what they give for a batch, computed once for both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from toco.cam.activation import activation_maps
from toco.heads.class_maps import ConvMaps
from toco.heads.classifier import Classifier

CamHead = Classifier | ConvMaps


class HeadOutput(ABC):
    """Class scores of the images and of their patches."""

    @abstractmethod
    def logits(self) -> Float[Tensor, "b k"]:
        """Logits of the images."""

    @abstractmethod
    def maps(self, classes: Int[Tensor, "b m"] | None = None) -> Float[Tensor, "b _ p q"]:
        """Maps of the given classes (0-based) of each image; ``None`` means all classes."""


@dataclass(frozen=True, slots=True)
class LinearOutput(HeadOutput):
    """Output of a classifier over pooled tokens, whose weight scores every token."""

    head: Classifier
    tokens: Float[Tensor, "b c p q"]

    def logits(self) -> Float[Tensor, "b k"]:
        """See the base class."""
        logits: Tensor = self.head(self.tokens)
        return logits

    def maps(self, classes: Int[Tensor, "b m"] | None = None) -> Float[Tensor, "b _ p q"]:
        """See the base class."""
        return activation_maps(self.tokens, self.head.weight, classes)


@dataclass(frozen=True, slots=True)
class MapsOutput(HeadOutput):
    """Output of a head that makes all maps first and pools them."""

    head: ConvMaps
    all_maps: Float[Tensor, "b k p q"]

    def logits(self) -> Float[Tensor, "b k"]:
        """See the base class."""
        return self.head.logits(self.all_maps)

    def maps(self, classes: Int[Tensor, "b m"] | None = None) -> Float[Tensor, "b _ p q"]:
        """See the base class."""
        if classes is None:
            return self.all_maps
        index = classes[:, :, None, None].expand(-1, -1, *self.all_maps.shape[2:])
        return self.all_maps.gather(1, index)
