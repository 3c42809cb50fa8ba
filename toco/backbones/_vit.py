"""The network of :mod:`toco.backbones.vit`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from toco.backbones._accelerated import CpuAttention, accelerate
from toco.backbones._backbone import Backbone
from toco.backbones._stochastic_depth import replace_drop_paths
from toco.cpu_layers import linear
from toco.tensors import Features
from toco.types import IMAGENET_MEAN, IMAGENET_STD


class ViT(Backbone):
    """A ``VisionTransformer`` or ``Eva`` of timm, for any input size and any block.

    The class token is the first one. Tokens between it and the patches (registers, the distillation
    token of DeiT) take part in every block and are in no map.

    Three things follow the official encoder (``model/backbone/vit.py``) rather than timm:

    1. Positions are frozen; timm trains them.
    2. Position embeddings are interpolated bicubically without anti-aliasing; timm anti-aliases.
    3. An input whose sides are no multiples of the patch loses its last rows and columns; timm
       refuses it, or pads it if ``dynamic_img_pad`` is set.

    As in timm, rotary embeddings are computed for the current grid.

    Where timm normalises the pooled tokens instead of each token (``fc_norm``), that norm becomes
    the final norm of every token.

    Raises:
        ValueError: The network is not such a ViT, or has no class token.
    """

    def __init__(
        self,
        vit: Any,  # noqa: ANN401 - timm types its attributes as optional
        pixel_mean: tuple[float, float, float] = IMAGENET_MEAN,
        pixel_std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__(pixel_mean, pixel_std)
        _check(vit)
        # Pooling is not used here, and DDP fails on parameters without a gradient.
        vit.attn_pool = None
        if isinstance(vit.norm, nn.Identity):
            vit.norm, vit.fc_norm = vit.fc_norm, nn.Identity()
        accelerate(vit)
        replace_drop_paths(vit)
        self.vit = vit
        self.width = vit.embed_dim
        self.depth = len(vit.blocks)
        self.patch_size_px = vit.patch_embed.patch_size[0]
        self.num_prefix_tokens = vit.num_prefix_tokens
        if vit.pos_embed is not None:
            vit.pos_embed.requires_grad_(False)
        if (rope := getattr(vit, "rope", None)) is not None:
            rope.requires_grad_(False)
            # timm can jitter coordinates in training, with the global random state.
            rope.aug_active = False

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        aux_block: int | None = None,
        num_maps: int | None = None,
    ) -> Features:
        """See the base class."""
        aux_block = self._checked_block(aux_block)
        tokens, grid = self._embed(images)
        *rotations, last_rotation = self._rotations(grid)
        num_maps = len(images) if num_maps is None else num_maps
        for index, (block, rotation) in enumerate(
            zip(self.vit.blocks[:-1], rotations, strict=True)
        ):
            tokens = block(tokens, **rotation)
            if index == aux_block:
                aux_features = self._as_map(tokens[:num_maps], grid)
        last = self.vit.blocks[-1]
        # Skipped for zero images, because attention kernels of CUDA may reject an empty batch.
        final_tokens = (
            self.vit.norm(last(tokens[:num_maps], **last_rotation)) if num_maps else tokens[:0]
        )
        class_token = final_tokens[:, 0]
        if num_maps < len(images):
            other_class_tokens = self.vit.norm(
                _class_token_after(last, tokens[num_maps:], last_rotation)
            )
            class_token = torch.cat([class_token, other_class_tokens])
        features = self._as_map(final_tokens, grid)
        return Features(
            class_token, features, features if aux_block == self.depth - 1 else aux_features
        )

    def aux_features(
        self, images: Float[Tensor, "b 3 h w"], aux_block: int
    ) -> Float[Tensor, "b c p q"]:
        """See the base class."""
        self.aux_width(aux_block)
        tokens, grid = self._embed(images)
        return self._as_map(
            next(itertools.islice(self._blocks(tokens, grid), aux_block, None)), grid
        )

    def forward_blocks(
        self, images: Float[Tensor, "b 3 h w"], aux_block: int | None = None
    ) -> tuple[Features, list[Float[Tensor, "b _ _"]]]:
        """See the base class."""
        aux_block = self._checked_block(aux_block)
        tokens, grid = self._embed(images)
        blocks = list(self._blocks(tokens, grid))
        features, aux_features = (
            self._as_map(tokens, grid) for tokens in (blocks[-1], blocks[aux_block])
        )
        return Features(blocks[-1][:, 0], features, aux_features), [
            t[:, self.num_prefix_tokens :] for t in blocks
        ]

    def layers(self) -> list[list[nn.Parameter]]:
        """See the base class."""
        blocks = [list(block.parameters()) for block in self.vit.blocks]
        blocks[-1] += self.vit.norm.parameters()
        in_blocks = {id(parameter) for block in blocks for parameter in block}
        return [[p for p in self.parameters() if id(p) not in in_blocks], *blocks]

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens before the first block, class token first, and the grid of the patches."""
        images, grid = self._prepare(images)
        patches = self.vit.patch_embed(images).flatten(1, 2)
        prefix_parameters = (
            getattr(self.vit, name, None) for name in ("cls_token", "dist_token", "reg_token")
        )
        prefix_tokens = [
            token.expand(len(images), -1, -1) for token in prefix_parameters if token is not None
        ]
        positions = self._positions(*grid)
        if positions is None:
            tokens = torch.cat([*prefix_tokens, patches], dim=1)
        elif positions.shape[1] == patches.shape[1]:
            # Embeddings of the patches alone (as in DeiT III): the tokens before them get none.
            tokens = torch.cat([*prefix_tokens, patches + positions], dim=1)
        else:
            tokens = torch.cat([*prefix_tokens, patches], dim=1) + positions
        return self.vit.norm_pre(tokens), grid

    def _blocks(self, tokens: Tensor, grid: tuple[int, int]) -> Iterator[Tensor]:
        """Tokens after each block, class token first; the last ones after the final norm."""
        for index, (block, rotation) in enumerate(
            zip(self.vit.blocks, self._rotations(grid), strict=True)
        ):
            tokens = block(tokens, **rotation)
            yield self.vit.norm(tokens) if index == self.depth - 1 else tokens

    def _positions(self, p: int, q: int) -> Tensor | None:
        """Position embeddings for a grid of ``p`` by ``q`` patches.

        Only the patches' embeddings are interpolated, not those of the tokens before them.
        """
        positions: Tensor | None = self.vit.pos_embed
        rows, columns = self.vit.patch_embed.grid_size
        if positions is None or (p, q) == (rows, columns):
            return positions
        prefix, grid = positions.split([positions.shape[1] - rows * columns, rows * columns], dim=1)
        grid = grid.reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(p, q), mode="bicubic", align_corners=False)
        return torch.cat([prefix, grid.flatten(2).transpose(1, 2)], dim=1)

    def _rotations(self, grid: tuple[int, int]) -> list[dict[str, Tensor]]:
        """Keyword arguments with the rotary embedding for each block; empty without one."""
        if (rope := getattr(self.vit, "rope", None)) is None:
            return [{}] * self.depth
        rotation = rope.get_embed(grid)
        return [
            {"rope": rotation[index] if self.vit.rope_mixed else rotation}
            for index in range(self.depth)
        ]

    def _as_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Arrange the patches among the tokens ``b n c`` as a map ``b c p q``."""
        patches = tokens[:, self.num_prefix_tokens :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], *grid)


def _check(vit: nn.Module) -> None:
    """Refuse a network that :class:`ViT` cannot run.

    Raises:
        ValueError: The message continues a sentence of the caller that names the network: "it ...".
    """
    from timm.layers.patch_embed import PatchEmbed
    from timm.models import Eva, VisionTransformer

    if not isinstance(vit, (Eva, VisionTransformer)):
        raise ValueError(
            f"it is a {type(vit).__name__}; expected a VisionTransformer or an Eva of timm."
        )
    if vit.cls_token is None:
        raise ValueError(
            "it has no class token, which ToCo contrasts; expected a ViT with one (SigLIP has "
            "none)."
        )
    if type(vit.patch_embed) is not PatchEmbed or len(set(vit.patch_embed.patch_size)) > 1:
        raise ValueError(
            "its patches are not embedded by one square convolution; expected a plain patch "
            "embedding."
        )


def _class_token_after(
    block: Any,  # noqa: ANN401 - timm's
    tokens: Float[Tensor, "b n c"],
    rotation: dict[str, Tensor],
) -> Float[Tensor, "b c"]:
    """Compute the class token of ``block(tokens, **rotation)`` alone.

    The class token needs the keys and values of all tokens, but only its own query, projection and
    MLP. A block other than timm's plain one is computed in full. Dropout in attention and its
    projection, which models of timm have only on request, is not applied; without it the result is
    that of the block.
    """
    from timm.models.vision_transformer import Block

    if (
        type(block) is not Block
        or type(block.attn) is not CpuAttention
        or getattr(block.attn, "gate", None) is not None
    ):
        tokens_after: Tensor = block(tokens, **rotation)[:, 0]
        return tokens_after
    attention = block.attn
    normed = block.norm1(tokens)
    num_queries = attention.num_heads * attention.head_dim
    sizes = [num_queries, 2 * num_queries]
    weights = attention.qkv.weight.split(sizes)
    biases = (None, None) if attention.qkv.bias is None else attention.qkv.bias.split(sizes)
    query = linear(normed[:, :1], weights[0], biases[0])
    key, value = linear(normed, weights[1], biases[1]).chunk(2, dim=-1)
    query, key, value = (
        part.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)
        for part in (query, key, value)
    )
    attended = F.scaled_dot_product_attention(attention.q_norm(query), attention.k_norm(key), value)
    attended = attention.proj(attention.norm(attended.transpose(1, 2).flatten(2)))
    class_token: Tensor = tokens[:, :1] + block.drop_path1(block.ls1(attended))
    class_token = class_token + block.drop_path2(block.ls2(block.mlp(block.norm2(class_token))))
    return class_token[:, 0]
