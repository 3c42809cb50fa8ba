"""What a filter asks of the maps that it is called on."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def check_maps(values: Float[Tensor, "b k h w"], num_images: int, height: int, width: int) -> None:
    """Refuse maps that do not lie on the pixels of the images.

    Raises:
        ValueError: They are of another number or size.
    """
    if len(values) != num_images or values.shape[2:] != (height, width):
        raise ValueError(
            f"expected maps of {height} x {width} pixels for {num_images} images, as the filter was built for, "
            f"got {tuple(values.shape)}"
        )
