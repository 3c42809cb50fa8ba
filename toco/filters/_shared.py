"""Coordinates in which the filters measure distance, and the loop over images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def bilateral_features(
    image: Float[Tensor, "*b 3 h w"], sigma_rgb: float, sigma_xy: float
) -> Float[Tensor, "*b 5 hw"]:
    """Column, row and colours of every pixel, row by row, in standard deviations of the kernel.

    The order of the coordinates is that of the official filter; the lattice depends on it.
    """
    *batch, _, height, width = image.shape
    position = position_features(image, sigma_xy).expand(*batch, 2, height * width)
    return torch.cat([position, (image / _scalar(image, sigma_rgb)).flatten(-2)], dim=-2)


def position_features(image: Float[Tensor, "*b 3 h w"], sigma_xy: float) -> Float[Tensor, "2 hw"]:
    """Column and row of every pixel, in standard deviations of the kernel."""
    height, width = image.shape[-2:]
    per_pixel = _scalar(image, sigma_xy)
    column = torch.arange(width, dtype=image.dtype, device=image.device) / per_pixel
    row = torch.arange(height, dtype=image.dtype, device=image.device) / per_pixel
    return torch.stack([column.expand(height, width), row[:, None].expand(height, width)]).flatten(
        1
    )


def _scalar(image: Tensor, value: float) -> Float[Tensor, ""]:
    # A tensor, because CUDA divides by a Python number through its reciprocal. The last bit would
    # then differ from the CPU's, and for a few pixels so would the simplex of the lattice.
    return image.new_full((), value)


def check_maps(values: Float[Tensor, "b k h w"], num_images: int, height: int, width: int) -> None:
    """Check that maps lie on the pixels of the images.

    Raises:
        ValueError: The maps have another number or size.
    """
    if len(values) != num_images or values.shape[2:] != (height, width):
        raise ValueError(
            f"expected maps of {height} x {width} pixels for {num_images} images, as the filter "
            f"was built for, got {tuple(values.shape)}"
        )


@dataclass(frozen=True, slots=True)
class ImageByImage:
    """A filter of several images, applied one after the other.

    Attributes:
        images: A filter of maps ``k h w`` for each image; the dtype of its result does not matter.
        inside: Pixels that count; ``None`` if all do, or if ``images`` handle the boxes themselves.
        size: Rows and columns.
    """

    images: tuple[Callable[[Tensor], Tensor], ...]
    inside: Bool[Tensor, "b h w"] | None
    size: tuple[int, int]

    @torch.no_grad()
    def __call__(self, values: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
        """Filter all maps, image by image.

        Raises:
            ValueError: The maps have another number or size than the images.
        """
        check_maps(values, len(self.images), *self.size)
        if self.inside is not None:
            values = values.where(self.inside[:, None], 0)
        result = torch.empty_like(values, memory_format=torch.contiguous_format)
        for image, maps, target in zip(self.images, values, result, strict=True):
            target.copy_(image(maps))
        return result if self.inside is None else result.where(self.inside[:, None], 0)
