"""What the convolutional backbones share: maps after every block, and no class token."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from toco.backbones._backbone import Backbone
from toco.tensors import Features


class Convolutional(Backbone):
    """A network of convolutions for any input size, WITHOUT A CLASS TOKEN.

    The class token of the result is the mean of the final map. Blocks with a finer grid than that
    of the final map cannot be auxiliary ones.

    Attributes:
        widths: Channels of the map after each block.
        first_aux_block: First block (0-based) whose map has the grid of the final map.
    """

    widths: list[int]
    first_aux_block: int

    @abstractmethod
    def _maps(self, images: Float[Tensor, "b 3 h w"]) -> Iterator[Float[Tensor, "b _ _ _"]]:
        """Yield the map after each block; the last one is the final map."""

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        aux_block: int | None = None,
        num_maps: int | None = None,
    ) -> Features:
        """See the base class; all maps are computed, because class tokens are their means."""
        aux_block = self._checked_block(aux_block)
        images, _ = self._prepare(images)
        for index, maps in enumerate(self._maps(images)):
            if index == aux_block:
                aux = maps
        return _features(maps, aux, num_maps)

    def aux_features(
        self, images: Float[Tensor, "b 3 h w"], aux_block: int
    ) -> Float[Tensor, "b c p q"]:
        """See the base class."""
        self.aux_width(aux_block)
        images, _ = self._prepare(images)
        return next(itertools.islice(self._maps(images), aux_block, None))

    def forward_blocks(
        self, images: Float[Tensor, "b 3 h w"], aux_block: int | None = None
    ) -> tuple[Features, list[Float[Tensor, "b _ _"]]]:
        """See the base class; the tokens of a block are the entries of its map, row by row."""
        aux_block = self._checked_block(aux_block)
        images, _ = self._prepare(images)
        blocks = list(self._maps(images))
        return _features(blocks[-1], blocks[aux_block]), [
            maps.flatten(2).transpose(1, 2) for maps in blocks
        ]

    def aux_width(self, aux_block: int) -> int:
        """See the base class; blocks with a finer grid are refused as well."""
        super().aux_width(aux_block)
        if aux_block < self.first_aux_block:
            raise ValueError(
                f"aux_block is {aux_block}, but only blocks {self.first_aux_block} to "
                f"{self.depth - 1} of this backbone have the grid of the final map; set it to one "
                "of them."
            )
        return self.widths[aux_block]


def _features(final: Tensor, aux: Tensor, num_maps: int | None = None) -> Features:
    features = final[:num_maps]
    return Features(final.mean(dim=(2, 3)), features, features if aux is final else aux[:num_maps])
