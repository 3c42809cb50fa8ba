"""The interface of a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from toco.tensors import Features
from toco.types import IMAGENET_MEAN, IMAGENET_STD


class Backbone(nn.Module, ABC):
    """An encoder with a class token and patch tokens.

    Args:
        pixel_mean: Mean of the pixels that the weights expect.
        pixel_std: Standard deviation of the pixels that the weights expect.

    Attributes:
        width: Channels of the class token and of the final patch tokens.
        depth: Number of blocks.
        patch_size_px: Side of the square of pixels behind one entry of the maps.
    """

    width: int
    depth: int
    patch_size_px: int

    def __init__(
        self,
        pixel_mean: tuple[float, float, float] = IMAGENET_MEAN,
        pixel_std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        uses_imagenet = (pixel_mean, pixel_std) == (IMAGENET_MEAN, IMAGENET_STD)
        self.renormalise = nn.Identity() if uses_imagenet else _Renormalise(pixel_mean, pixel_std)

    @abstractmethod
    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        aux_block: int | None = None,
        num_maps: int | None = None,
    ) -> Features:
        """Compute the tokens of the last block and of block ``aux_block`` (0-based).

        Args:
            images: Images, normalised with the ImageNet mean and std. Rows and columns beyond the
                last complete patch are ignored.
            aux_block: Block of the auxiliary features; ``None`` is the last block.
            num_maps: Compute patch tokens of the first ``num_maps`` images alone. The others get a
                class token only, for which much of the last block need not be computed. ``None``
                means all images.

        Raises:
            ValueError: The image is smaller than a patch, or the block does not exist.
        """

    @abstractmethod
    def aux_features(
        self, images: Float[Tensor, "b 3 h w"], aux_block: int
    ) -> Float[Tensor, "b c p q"]:
        """Compute only the auxiliary features of :meth:`forward`; later blocks are skipped.

        Raises:
            ValueError: As for :meth:`forward`.
        """

    @abstractmethod
    def forward_blocks(
        self, images: Float[Tensor, "b 3 h w"], aux_block: int | None = None
    ) -> tuple[Features, list[Float[Tensor, "b _ _"]]]:
        """Compute :meth:`forward` and, in the same pass, the patch tokens after every block.

        The tokens are taken before the final norm, except for the last block's, which are taken
        after it. Number and width of the tokens may differ between blocks.

        Raises:
            ValueError: As for :meth:`forward`.
        """

    def aux_width(self, aux_block: int) -> int:
        """Channels of the auxiliary features of ``aux_block``.

        Raises:
            ValueError: The block does not exist, or cannot be the auxiliary one.
        """
        if not 0 <= aux_block < self.depth:
            raise ValueError(
                f"aux_block is {aux_block}, but this backbone has blocks 0 to {self.depth - 1} "
                "(the paper counts from 1)."
            )
        return self.width

    def layers(self) -> list[list[nn.Parameter]]:
        """Parameters from the input to the output: of the embedding, then of each block.

        The final norm belongs to the last block. The order serves ``layer_decay`` and
        ``frozen_layers`` of :class:`toco.train.optim_config.BaseOptimConfig`. An empty list says
        that the backbone has no such order.
        """
        return []

    def _checked_block(self, aux_block: int | None) -> int:
        """Return the block of the auxiliary features after checking that it exists."""
        block = self.depth - 1 if aux_block is None else aux_block
        self.aux_width(block)
        return block

    def norm_parameters(self) -> list[nn.Parameter]:
        """Parameters of the normalisation layers, which the optimizer keeps in their own group."""
        import toco.backbones._torchvision  # noqa: F401 - must come before timm

        from timm.layers.norm import RmsNorm  # isort: skip

        kinds = (nn.LayerNorm, RmsNorm, nn.BatchNorm2d)
        norms = (module for module in self.modules() if isinstance(module, kinds))
        return [parameter for norm in norms for parameter in norm.parameters()]

    def _prepare(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Crop images to complete patches and normalise them; also return the grid of patches."""
        height, width = images.shape[-2:]
        p, q = height // self.patch_size_px, width // self.patch_size_px
        if min(p, q) == 0:
            raise ValueError(
                f"The image is {height}x{width} px, smaller than one patch of {self.patch_size_px} "
                "px."
            )
        cropped = images[..., : p * self.patch_size_px, : q * self.patch_size_px]
        return self.renormalise(cropped), (p, q)


class _Renormalise(nn.Module):
    """Conversion from the ImageNet normalisation to another one."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        # In float64, so that the results are rounded once.
        new_mean, new_std, old_mean, old_std = (
            torch.tensor(values, dtype=torch.float64)[:, None, None]
            for values in (mean, std, IMAGENET_MEAN, IMAGENET_STD)
        )
        # Not persistent: the config holds these values, and checkpoints hold the weights alone.
        self.register_buffer("scale", (old_std / new_std).float(), persistent=False)
        self.register_buffer("shift", ((old_mean - new_mean) / new_std).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise ``images`` with the other mean and deviation."""
        return images * self.scale + self.shift
