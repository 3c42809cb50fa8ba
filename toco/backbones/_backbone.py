"""What a backbone is to the rest of the library."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from toco.config import Component
from toco.types import Features


class BackboneConfig(Component):
    """Base of the configs of ``toco.backbones``."""


class Backbone(nn.Module, ABC):
    """An encoder with a class token and patch tokens.

    Attributes:
        width: Channels of every token.
        depth: Number of blocks.
        patch_size_px: Side of a square patch.
    """

    width: int
    depth: int
    patch_size_px: int

    @abstractmethod
    def forward(self, images: Float[Tensor, "b 3 h w"], aux_block: int, num_maps: int | None = None) -> Features:
        """Tokens of the last block and of block ``aux_block`` (0-based).

        Args:
            images: Normalised images.
            aux_block: Block of the auxiliary features.
            num_maps: Patch tokens are wanted of this many images, the first ones; of the others the class token alone,
                for which much of the last block need not be computed. ``None`` means all of them.

        Raises:
            ValueError: The image is smaller than a patch, or there is no such block.
        """

    @abstractmethod
    def aux_features(self, images: Float[Tensor, "b 3 h w"], aux_block: int) -> Float[Tensor, "b c p q"]:
        """The auxiliary features of :meth:`forward` alone; the blocks after ``aux_block`` are not computed.

        Raises:
            ValueError: As for :meth:`forward`.
        """

    @abstractmethod
    def block_tokens(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b n c"]]:
        """Patch tokens after every block, before the final norm except for the last, which is after it."""

    @abstractmethod
    def norm_parameters(self) -> list[nn.Parameter]:
        """Parameters of the normalisation layers; the optimizer keeps them in a group of their own."""
