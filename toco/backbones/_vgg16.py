"""The network of :mod:`toco.backbones.vgg16`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from toco.backbones._convolutional import Convolutional
from toco.types import IMAGENET_MEAN, IMAGENET_STD


class Vgg16(Convolutional):
    """A ``VGG`` of timm as a dilated network of stride 8, WITHOUT A CLASS TOKEN.

    Source: official RCA code (VGG16 of OAA). The fourth pool has stride 1, the convolutions after
    it have dilation 2, and the fifth pool and the classifier are left out. Nothing is frozen.

    A block is a stage: the convolutions between two pools, with the ReLU after each. Its map is
    taken before the pool. The last two of the five stages have the grid of the final map.

    One thing follows the other backbones rather than the official code: rows and columns beyond the
    last whole patch of 8 pixels are cut off before the first convolution. The grid is the same, but
    officially these pixels still reach entries near the border.

    Args:
        vgg: Without batch norm. It is edited in place and loses its classifier.
        pixel_mean: See the base class.
        pixel_std: See the base class.

    Raises:
        ValueError: The network is not such a VGG.
    """

    def __init__(
        self,
        vgg: Any,  # noqa: ANN401 - timm's
        pixel_mean: tuple[float, float, float] = IMAGENET_MEAN,
        pixel_std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__(pixel_mean, pixel_std)
        _check(vgg)
        vgg.pre_logits, vgg.head = nn.Identity(), nn.Identity()
        *_, fourth, fifth = (
            index for index, layer in enumerate(vgg.features) if isinstance(layer, nn.MaxPool2d)
        )
        vgg.features[fourth] = nn.MaxPool2d(kernel_size=3, stride=1, padding=1)
        vgg.features = vgg.features[:fifth]
        self.vgg = vgg
        stages = self._stages()
        for convolution in stages[-1]:
            convolution.dilation = convolution.padding = (2, 2)
        self.widths = [stage[-1].out_channels for stage in stages]
        self.width, self.depth = self.widths[-1], len(stages)
        self.first_aux_block = self.depth - 2
        self.patch_size_px = 2**self.first_aux_block

    def layers(self) -> list[list[nn.Parameter]]:
        """See the base class; the first convolution counts as the embedding."""
        (first, *others), *stages = self._stages()
        return [
            [parameter for convolution in stage for parameter in convolution.parameters()]
            for stage in ([first], others, *stages)
        ]

    def _stages(self) -> list[list[nn.Conv2d]]:
        """Convolutions of each stage."""
        stages: list[list[nn.Conv2d]] = [[]]
        for layer in self.vgg.features:
            if isinstance(layer, nn.MaxPool2d):
                stages.append([])
            elif isinstance(layer, nn.Conv2d):
                stages[-1].append(layer)
        return stages

    def _maps(self, images: Float[Tensor, "b 3 h w"]) -> Iterator[Float[Tensor, "b _ _ _"]]:
        """See the base class."""
        maps = images
        for layer in self.vgg.features:
            if isinstance(layer, nn.MaxPool2d):
                yield maps
            maps = layer(maps)
        yield maps


def _check(vgg: nn.Module) -> None:
    """Refuse a network that :class:`Vgg16` cannot run.

    Raises:
        ValueError: The message continues a sentence of the caller that names the network: "it ...".
    """
    from timm.models import VGG

    if not isinstance(vgg, VGG):
        raise ValueError(f"it is a {type(vgg).__name__}; expected a VGG of timm.")
    if vgg.use_norm:
        raise ValueError(
            "its batch norms compare the images of a batch; expected a VGG without them, such as "
            "vgg16."
        )
