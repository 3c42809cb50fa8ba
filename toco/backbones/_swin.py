"""The network of :mod:`toco.backbones.swin`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from toco.backbones._backbone import Backbone
from toco.backbones._stochastic_depth import replace_drop_paths
from toco.tensors import Features
from toco.types import IMAGENET_MEAN, IMAGENET_STD


class Swin(Backbone):
    """A ``SwinTransformer`` of timm for any input size, WITHOUT A CLASS TOKEN.

    It is an addition to the paper, which has only ViTs. The class token of the result is the mean
    of the final patch tokens after the norm. Blocks are counted from 0 over all stages. All maps
    lie on the grid of the last stage but one (stride 16). Tokens of the last stage (stride 32) are
    interpolated to this grid bilinearly. Blocks of earlier stages, whose grids are finer, cannot be
    auxiliary ones.

    As in timm, windows and merged patches that reach beyond the grid are padded with zeros, and
    windows are not shifted where one covers the grid. The biases of relative positions are frozen,
    like the position embeddings of the ViTs.

    Args:
        swin: Made with ``strict_img_size=False, always_partition=True``.
        pixel_mean: See the base class.
        pixel_std: See the base class.

    Raises:
        ValueError: The network is not such a Swin transformer.
    """

    def __init__(
        self,
        swin: Any,  # noqa: ANN401 - timm's
        pixel_mean: tuple[float, float, float] = IMAGENET_MEAN,
        pixel_std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__(pixel_mean, pixel_std)
        _check(swin)
        replace_drop_paths(swin)
        self.swin = swin
        self.width = swin.num_features
        stages = zip(swin.feature_info, swin.layers, strict=True)
        self.widths: list[int] = [info["num_chs"] for info, stage in stages for _ in stage.blocks]
        self.depth = len(self.widths)
        self.first_aux_block = sum(len(stage.blocks) for stage in swin.layers[:-2])
        self.patch_size_px = swin.feature_info[-2]["reduction"]
        for name, parameter in swin.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.requires_grad_(False)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        aux_block: int | None = None,
        num_maps: int | None = None,
    ) -> Features:
        """See the base class."""
        aux_block = self._checked_block(aux_block)
        images, grid = self._prepare(images)
        for index, tokens in enumerate(self._blocks(images)):
            if index == aux_block:
                aux = tokens
        return self._features(tokens, aux, grid, num_maps)

    def aux_features(
        self, images: Float[Tensor, "b 3 h w"], aux_block: int
    ) -> Float[Tensor, "b c p q"]:
        """See the base class."""
        self.aux_width(aux_block)
        images, grid = self._prepare(images)
        return _on_grid(next(itertools.islice(self._blocks(images), aux_block, None)), grid)

    def forward_blocks(
        self, images: Float[Tensor, "b 3 h w"], aux_block: int | None = None
    ) -> tuple[Features, list[Float[Tensor, "b _ _"]]]:
        """See the base class."""
        aux_block = self._checked_block(aux_block)
        images, grid = self._prepare(images)
        blocks = list(self._blocks(images))
        return self._features(blocks[-1], blocks[aux_block], grid), [
            tokens.flatten(1, 2) for tokens in blocks
        ]

    def aux_width(self, aux_block: int) -> int:
        """See the base class; blocks before the last two stages are refused as well."""
        super().aux_width(aux_block)
        if aux_block < self.first_aux_block:
            raise ValueError(
                f"aux_block is {aux_block}, but the auxiliary maps of a Swin come from its last "
                f"two stages, blocks {self.first_aux_block} to {self.depth - 1}, which have the "
                "grid of the final maps; set it to one of them."
            )
        return self.widths[aux_block]

    def layers(self) -> list[list[nn.Parameter]]:
        """See the base class; merging the patches belongs to the block after it."""
        blocks: list[list[nn.Parameter]] = []
        for stage in self.swin.layers:
            first, *others = (list(block.parameters()) for block in stage.blocks)
            blocks += [[*stage.downsample.parameters(), *first], *others]
        blocks[-1] += self.swin.norm.parameters()
        return [list(self.swin.patch_embed.parameters()), *blocks]

    def _blocks(self, images: Tensor) -> Iterator[Tensor]:
        """Tokens ``b p q c`` after each block, on the grid of its stage.

        The tokens of the last block are taken after the final norm.
        """
        tokens = self.swin.patch_embed(images)
        for stage in self.swin.layers:
            tokens = stage.downsample(tokens)
            for block in stage.blocks:
                sides = zip(
                    tokens.shape[1:3], block.window_size, block.target_shift_size, strict=True
                )
                # timm fixes the shifts for one input size; here they follow the current grid.
                block.shift_size = tuple(
                    shift if side > window else 0 for side, window, shift in sides
                )
                tokens = block(tokens)
                last = stage is self.swin.layers[-1] and block is stage.blocks[-1]
                yield self.swin.norm(tokens) if last else tokens

    def _features(
        self, final: Tensor, aux: Tensor, grid: tuple[int, int], num_maps: int | None = None
    ) -> Features:
        features = _on_grid(final[:num_maps], grid)
        return Features(
            final.mean(dim=(1, 2)),
            features,
            features if aux is final else _on_grid(aux[:num_maps], grid),
        )


def _check(swin: nn.Module) -> None:
    """Refuse a network that :class:`Swin` cannot run.

    Raises:
        ValueError: The message continues a sentence of the caller that names the network: "it ...".
    """
    from timm.models import SwinTransformer

    if not isinstance(swin, SwinTransformer):
        raise ValueError(f"it is a {type(swin).__name__}; expected a SwinTransformer of timm.")


def _on_grid(tokens: Float[Tensor, "b y x c"], grid: tuple[int, int]) -> Float[Tensor, "b c p q"]:
    """Arrange tokens as a map on ``grid``, which is the tokens' own grid or twice as fine."""
    maps = tokens.permute(0, 3, 1, 2)
    if maps.shape[-2:] == grid:
        return maps
    # Where a side of the finer grid is odd, patches beyond it were merged into the last ones. The
    # maps then reach beyond the grid, and are cropped.
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)[
        ..., : grid[0], : grid[1]
    ]
