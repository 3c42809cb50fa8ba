"""The network of :mod:`toco.backbones.resnet38`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from toco.backbones._convolutional import Convolutional
from toco.types import IMAGENET_MEAN, IMAGENET_STD

Norm = Callable[[int], nn.BatchNorm2d]

_STEM_WIDTH = 64


class _Stage(NamedTuple):
    """Basic blocks with the same widths.

    The stride and ``first_dilation``, that of the first convolution, belong to the first block.
    """

    num_blocks: int
    mid_width: int
    width: int
    stride: int
    first_dilation: int
    dilation: int


_STAGES = {
    "b2": _Stage(3, 128, 128, 2, 1, 1),
    "b3": _Stage(3, 256, 256, 2, 1, 1),
    "b4": _Stage(6, 512, 512, 2, 1, 1),
    "b5": _Stage(3, 512, 1024, 1, 1, 2),
}
_BOTTLENECKS = {"b6": 2048, "b7": 4096}
"""Widths of the last two blocks."""
_BOTTLENECK_DILATION = 4
_FIRST_BLOCK_ON_FINAL_GRID = sum(_STAGES[name].num_blocks for name in ("b2", "b3"))


class WideResNet38(nn.Module):
    """The convolutions of model A1 of "Wider or Deeper", without a classifier.

    Wu, Shen and van den Hengel, "Wider or Deeper: Revisiting the ResNet Model for Visual
    Recognition", Pattern Recognition 2019, as psa (AffinityNet) and EPS use it: stride 8, dilated
    from b5 on. No convolution has a bias. Names of parameters are those of psa.

    Args:
        width_divisor: All widths are divided by it.
        norm: Makes the batch norm of so many channels.
        dropout: Probabilities of the 2D dropout in b6 and in b7, before their last two
            convolutions.
    """

    def __init__(
        self, width_divisor: int, norm: Norm, dropout: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        super().__init__()
        width = _STEM_WIDTH // width_divisor
        self.conv1a = _convolution(3, width)
        self.widths: list[int] = []
        self.names: list[str] = []
        for name, stage in _STAGES.items():
            for index in range(stage.num_blocks):
                first = index == 0
                block = BasicBlock(
                    width,
                    stage.mid_width // width_divisor,
                    stage.width // width_divisor,
                    stage.stride if first else 1,
                    (stage.first_dilation if first else stage.dilation, stage.dilation),
                    norm,
                )
                width = self._add(name if first else f"{name}_{index}", block)
        for (name, block_width), probability in zip(_BOTTLENECKS.items(), dropout, strict=True):
            width = self._add(
                name, Bottleneck(width, block_width // width_divisor, probability, norm)
            )
        self.bn7 = norm(width)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c p q"]:
        """Compute the final map: the last block's after norm and ReLU.

        Its sides are those of the images divided by 8, rounded up.
        """
        *_, final = self.maps(images)
        return final

    def maps(self, images: Float[Tensor, "b 3 h w"]) -> Iterator[Float[Tensor, "b _ _ _"]]:
        """Yield the map after each block; the last one after norm and ReLU.

        The others are taken before the norm and the ReLU that the next block begins with.
        """
        maps = self.conv1a(images)
        *blocks, last = self.blocks()
        for block in blocks:
            maps = block(maps)
            yield maps
        yield self.bn7(last(maps)).relu()

    def blocks(self) -> list[nn.Module]:
        """The residual blocks, from the input to the output."""
        return [getattr(self, name) for name in self.names]

    def _add(self, name: str, block: BasicBlock | Bottleneck) -> int:
        """Append a block, and return the width of its map."""
        self.add_module(name, block)
        self.names.append(name)
        self.widths.append(block.width)
        return block.width


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, beside a shortcut.

    The shortcut is the input itself. Where the width or the grid changes, it is a 1x1 convolution
    of the input after the first norm and ReLU.
    """

    def __init__(
        self,
        in_width: int,
        mid_width: int,
        width: int,
        stride: int,
        dilations: tuple[int, int],
        norm: Norm,
    ) -> None:
        super().__init__()
        self.width = width
        self.bn_branch2a = norm(in_width)
        self.conv_branch2a = _convolution(in_width, mid_width, 3, stride, dilations[0])
        self.bn_branch2b1 = norm(mid_width)
        self.conv_branch2b1 = _convolution(mid_width, width, 3, 1, dilations[1])
        self.conv_branch1 = (
            _convolution(in_width, width, 1, stride) if in_width != width or stride != 1 else None
        )

    def forward(self, maps: Float[Tensor, "b _ _ _"]) -> Float[Tensor, "b _ _ _"]:
        """Compute the map after the block."""
        activation = self.bn_branch2a(maps).relu()
        branch = self.bn_branch2b1(self.conv_branch2a(activation)).relu()
        shortcut = maps if self.conv_branch1 is None else self.conv_branch1(activation)
        output: Tensor = shortcut + self.conv_branch2b1(branch)
        return output


class Bottleneck(nn.Module):
    """A 1x1, a dilated 3x3 and a 1x1 convolution, each after batch norm and ReLU, and a shortcut.

    The shortcut is a 1x1 convolution of the input after the first norm and ReLU.
    """

    def __init__(self, in_width: int, width: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        self.width = width
        self.bn_branch2a = norm(in_width)
        self.conv_branch2a = _convolution(in_width, width // 4, 1)
        self.bn_branch2b1 = norm(width // 4)
        self.conv_branch2b1 = _convolution(width // 4, width // 2, 3, 1, _BOTTLENECK_DILATION)
        self.bn_branch2b2 = norm(width // 2)
        self.conv_branch2b2 = _convolution(width // 2, width, 1)
        self.conv_branch1 = _convolution(in_width, width, 1)
        # Without a probability nothing may be drawn from the global generator.
        self.dropout = nn.Dropout2d(dropout) if dropout else nn.Identity()

    def forward(self, maps: Float[Tensor, "b _ _ _"]) -> Float[Tensor, "b _ _ _"]:
        """Compute the map after the block."""
        activation = self.bn_branch2a(maps).relu()
        branch = self.dropout(self.bn_branch2b1(self.conv_branch2a(activation)).relu())
        branch = self.dropout(self.bn_branch2b2(self.conv_branch2b1(branch)).relu())
        output: Tensor = self.conv_branch1(activation) + self.conv_branch2b2(branch)
        return output


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch norm that keeps its statistics, scale and shift, in training mode, too."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        """Stay in evaluation mode, whatever ``mode`` is."""
        return super().train(False)


class ResNet38(Convolutional):
    """:class:`WideResNet38` as a backbone, WITHOUT A CLASS TOKEN.

    A block is a residual block: b2 is blocks 0 to 2, b3 3 to 5, b4 6 to 11, b5 12 to 14, b6 15 and
    b7 16. All from b4 on have the grid of the final map.

    One thing follows the other backbones rather than psa: rows and columns beyond the last whole
    patch of 8 pixels are cut off. psa looks at them and rounds the sides of the grid up.

    Args:
        resnet: The network.
        pixel_mean: See the base class.
        pixel_std: See the base class.
    """

    def __init__(
        self,
        resnet: WideResNet38,
        pixel_mean: tuple[float, float, float] = IMAGENET_MEAN,
        pixel_std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__(pixel_mean, pixel_std)
        self.resnet = resnet
        self.widths = resnet.widths
        self.width, self.depth = self.widths[-1], len(self.widths)
        self.first_aux_block = _FIRST_BLOCK_ON_FINAL_GRID
        self.patch_size_px = math.prod(stage.stride for stage in _STAGES.values())

    def layers(self) -> list[list[nn.Parameter]]:
        """See the base class; the first convolution is the embedding."""
        blocks = [list(block.parameters()) for block in self.resnet.blocks()]
        blocks[-1] += self.resnet.bn7.parameters()
        return [list(self.resnet.conv1a.parameters()), *blocks]

    def _maps(self, images: Float[Tensor, "b 3 h w"]) -> Iterator[Float[Tensor, "b _ _ _"]]:
        """See the base class."""
        return self.resnet.maps(images)


def _convolution(
    in_width: int, width: int, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> nn.Conv2d:
    """A convolution without bias whose padding keeps the grid at stride 1."""
    padding = dilation * (kernel // 2)
    return nn.Conv2d(in_width, width, kernel, stride, padding, dilation, bias=False)
