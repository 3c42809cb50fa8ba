"""Plain vision transformers of timm: ``vit_*`` and ``deit_*`` by their timm names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from toco.backbones._backbone import Backbone, BackboneConfig
from toco.backbones._weights import load_file
from toco.types import Features

HUB = "hub"


class Config(BackboneConfig):
    """A ViT of timm.

    Attributes:
        model: Name in timm, with its tag where weights come from the hub, as in ``deit_base_patch16_224.fb_in1k``.
        weights: ``hub`` downloads timm's weights; a path reads a file (safetensors, or a torch file of plain tensors);
            ``null`` starts from random weights.
    """

    name: Literal["vit"] = "vit"
    model: str = "deit_base_patch16_224.fb_in1k"
    weights: str | None = HUB


def build(config: Config) -> ViT:
    """The backbone that ``config`` describes.

    Raises:
        ValueError: timm has no such model, it is not a plain ViT with a class token, or the weights do not fit.
    """
    # timm takes seconds to import, and what only counts or reports trainings needs the config alone.
    import toco.backbones._torchvision  # noqa: F401 - must come before timm

    from timm import create_model  # isort: skip
    from timm.models import VisionTransformer  # isort: skip

    # dynamic_img_size only changes the layout of the patch embedding's output; positions are interpolated below.
    options: dict[str, Any] = {"num_classes": 0, "dynamic_img_size": True}
    try:
        vit = create_model(config.model, pretrained=config.weights == HUB, **options)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"timm could not create {config.model!r} as a plain ViT: {error}") from error
    if not isinstance(vit, VisionTransformer):
        raise ValueError(f"{config.model!r} is a {type(vit).__name__}; this backbone takes timm's VisionTransformer.")
    backbone = ViT(vit)
    if (path := weights_path(config)) is not None:
        load_file(vit, path)
    return backbone


def weights_path(config: Config) -> Path | None:
    """The file that the weights are read from, if they are read from one."""
    return None if config.weights in (None, HUB) else Path(str(config.weights))


class ViT(Backbone):
    """A timm ``VisionTransformer`` that takes any input size and hands out the tokens of any block.

    Two things follow the official encoder rather than timm: position embeddings are frozen and interpolated bicubically
    without anti-aliasing (timm anti-aliases), and an input that is not a multiple of the patch loses its last rows and
    columns (timm pads). Source: official ``model/vit.py``.
    """

    def __init__(self, vit: Any) -> None:  # noqa: ANN401 - a VisionTransformer, whose attributes timm types as optional
        super().__init__()
        if vit.cls_token is None or vit.pos_embed is None or vit.num_prefix_tokens != 1 or vit.no_embed_class:
            raise ValueError("Expected a ViT with one class token that has a position of its own, and no registers.")
        self.vit = vit
        self.width = vit.embed_dim
        self.depth = len(vit.blocks)
        self.patch_size_px = vit.patch_embed.patch_size[0]
        vit.pos_embed.requires_grad_(False)

    def forward(self, images: Float[Tensor, "b 3 h w"], aux_block: int, num_maps: int | None = None) -> Features:
        """See the base class."""
        self._check_block(aux_block)
        grid = self._grid(images)
        num_maps = len(images) if num_maps is None else num_maps
        tokens = self._embed(images)
        for index, block in enumerate(self.vit.blocks[:-1]):
            tokens = block(tokens)
            if index == aux_block:
                aux_features = _as_map(tokens[:num_maps], grid)
        last = self.vit.blocks[-1]
        # Not of no image: attention kernels of CUDA need not take an empty batch.
        whole = self.vit.norm(last(tokens[:num_maps])) if num_maps else tokens[:0]
        class_token = whole[:, 0]
        if num_maps < len(images):
            alone = self.vit.norm(_class_token_after(last, tokens[num_maps:]))
            class_token = torch.cat([class_token, alone])
        features = _as_map(whole, grid)
        return Features(class_token, features, features if aux_block == self.depth - 1 else aux_features)

    def aux_features(self, images: Float[Tensor, "b 3 h w"], aux_block: int) -> Float[Tensor, "b c p q"]:
        """See the base class."""
        self._check_block(aux_block)
        tokens = next(itertools.islice(self._blocks(images), aux_block, None))
        return _as_map(tokens, self._grid(images))

    def block_tokens(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b n c"]]:
        """See the base class."""
        return [tokens[:, 1:] for tokens in self._blocks(images)]

    def norm_parameters(self) -> list[nn.Parameter]:
        """See the base class."""
        norms = (module for module in self.vit.modules() if isinstance(module, nn.LayerNorm))
        return [parameter for norm in norms for parameter in norm.parameters()]

    def _check_block(self, aux_block: int) -> None:
        if not 0 <= aux_block < self.depth:
            raise ValueError(f"aux_block is {aux_block}, but this backbone has blocks 0 to {self.depth - 1}.")

    def _grid(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        grid = height // self.patch_size_px, width // self.patch_size_px
        if min(grid) == 0:
            raise ValueError(f"The image is {height}x{width} px, smaller than one patch of {self.patch_size_px} px.")
        return grid

    def _embed(self, images: Tensor) -> Tensor:
        """Tokens before the first block, class token first."""
        p, q = self._grid(images)
        images = images[..., : p * self.patch_size_px, : q * self.patch_size_px]
        patches = self.vit.patch_embed(images).flatten(1, 2)
        class_token = self.vit.cls_token.expand(len(images), -1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + self._positions(p, q)
        embedded: Tensor = self.vit.norm_pre(tokens)
        return embedded

    def _blocks(self, images: Tensor) -> Iterator[Tensor]:
        """Tokens after each block, class token first; the last ones after the final norm."""
        tokens = self._embed(images)
        for index, block in enumerate(self.vit.blocks):
            tokens = block(tokens)
            yield self.vit.norm(tokens) if index == self.depth - 1 else tokens

    def _positions(self, p: int, q: int) -> Tensor:
        """Position embeddings for a grid of ``p`` by ``q`` patches; those of the class token stay as they are."""
        positions: Tensor = self.vit.pos_embed
        rows, columns = self.vit.patch_embed.grid_size
        if (p, q) == (rows, columns):
            return positions
        grid = positions[:, 1:].reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(p, q), mode="bicubic", align_corners=False)
        return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def _class_token_after(block: Any, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b c"]:  # noqa: ANN401 - timm's
    """The class token of ``block(tokens)``.

    It needs the keys and values of all tokens, but only its own query, projection and MLP. A block that is not built
    as timm's plain one is computed whole.
    """
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block

    if type(block) is not Block or type(block.attn) is not Attention or getattr(block.attn, "gate", None) is not None:
        after: Tensor = block(tokens)[:, 0]
        return after
    attention = block.attn
    normed = block.norm1(tokens)
    num_queries = attention.num_heads * attention.head_dim
    sizes = [num_queries, 2 * num_queries]
    weights = attention.qkv.weight.split(sizes)
    biases = (None, None) if attention.qkv.bias is None else attention.qkv.bias.split(sizes)
    query = F.linear(normed[:, :1], weights[0], biases[0])
    key, value = F.linear(normed, weights[1], biases[1]).chunk(2, dim=-1)
    query, key, value = (
        part.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2) for part in (query, key, value)
    )
    seen = F.scaled_dot_product_attention(attention.q_norm(query), attention.k_norm(key), value)
    seen = attention.proj(attention.norm(seen.transpose(1, 2).flatten(2)))
    class_token: Tensor = tokens[:, :1] + block.drop_path1(block.ls1(seen))
    class_token = class_token + block.drop_path2(block.ls2(block.mlp(block.norm2(class_token))))
    return class_token[:, 0]


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch tokens ``b 1+n c`` as ``b c p q``."""
    patches = tokens[:, 1:].transpose(1, 2)
    return patches.reshape(*patches.shape[:2], *grid)
