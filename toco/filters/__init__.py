"""Gaussian filters over all pixels: the exact sum, and the permutohedral lattice.

Each module of this package is a filter, named as its file. It defines ``build(images, sigma_rgb,
sigma_xy, boxes)``, the bilateral filter. It also defines ``build_gaussian(images, sigma_xy)``, the
filter of position alone. Both compute once what depends on the images. The filter that they return
takes any number of maps in one call.
"""

from __future__ import annotations

from typing import Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toco.registry import load

FilterName = Literal["exact", "lattice"]

EXACT_MAX_PIXELS = 64 * 64
"""Largest image that ``resolve("auto", ...)`` filters exactly on a CPU.

Measured on two threads of an otherwise idle AVX-512 CPU, with 21 maps, building and filtering
together, the fastest of several (exact | lattice; ``python -m benchmarks energy``): 32 x 32 1.8 |
2.1 ms, 56 x 56 13 | 3.8 ms, 112 x 112 196 | 7.9 ms; 224 x 224 27 ms on the lattice.
"""


@runtime_checkable
class BilateralFilter(Protocol):
    """Unnormalised Gaussian sum over all pixels of an image, for each map in ``values``.

    The sum includes the pixel itself. One filter may be called many times, as the iterations of a
    conditional random field do.
    """

    def __call__(self, values: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
        """Filter ``k`` maps of each image; the result keeps their dtype, without gradient."""
        ...


def build(
    name: str,
    images: Float[Tensor, "b 3 h w"],
    sigma_rgb: float,
    sigma_xy: float,
    boxes: Int[Tensor, "b 4"] | None = None,
) -> BilateralFilter:
    """Build the filter ``name`` for some images.

    Args:
        name: "exact" or "lattice" (``resolve`` turns "auto" into one of them).
        images: Colours in the unit of ``sigma_rgb``, usually 0 to 255.
        sigma_rgb: Standard deviation of the kernel in colour.
        sigma_xy: Standard deviation of the kernel in position, in pixels of these images.
        boxes: Rows ``y0 y1`` and columns ``x0 x1`` of each image, half-open, in its pixels; parts
            beyond the image are cut off. Outside the box values count as 0, whatever they are, and
            the result is 0.

    Raises:
        ValueError: There is no such filter, or a standard deviation is not positive.
    """
    if not (sigma_rgb > 0 and sigma_xy > 0):
        raise ValueError(
            f"expected positive standard deviations, got sigma_rgb={sigma_rgb} and "
            f"sigma_xy={sigma_xy}"
        )
    if images.device.type == "meta":
        return lambda values: torch.empty_like(values)  # tensors on "meta" have only a shape
    return cast(BilateralFilter, load(__name__, name).build(images, sigma_rgb, sigma_xy, boxes))


def build_gaussian(name: str, images: Float[Tensor, "b 3 h w"], sigma_xy: float) -> BilateralFilter:
    """Build the filter ``name`` with the kernel of position alone.

    Args:
        name: "exact" or "lattice".
        images: Images with the size, number, dtype and device of the maps to filter.
        sigma_xy: Standard deviation, in pixels.

    Raises:
        ValueError: There is no such filter, or the standard deviation is not positive.
    """
    if not sigma_xy > 0:
        raise ValueError(f"expected a positive standard deviation, got sigma_xy={sigma_xy}")
    return cast(BilateralFilter, load(__name__, name).build_gaussian(images, sigma_xy))


def resolve(
    name: Literal["auto", "exact", "lattice"], device: torch.device | str, num_pixels: int
) -> FilterName:
    """Choose the filter for images of ``num_pixels`` on ``device``.

    "auto" is exact where that is cheap: on any device that is not a CPU, and for small images.
    Otherwise it is the lattice. The results of the two differ by a factor: see ``energy_scale`` of
    :class:`toco.losses.config.DenseEnergyConfig`.

    Args:
        name: "auto", "exact" or "lattice".
        device: Where the images are.
        num_pixels: Pixels of the image that is filtered, after any down-scaling.

    Raises:
        ValueError: There is no such filter.

    >>> resolve("auto", "cpu", 32 * 32), resolve("auto", "cpu", 224 * 224)
    ('exact', 'lattice')
    >>> resolve("auto", "cuda", 224 * 224)
    'exact'
    """
    if name == "auto":
        return (
            "exact"
            if torch.device(device).type != "cpu" or num_pixels <= EXACT_MAX_PIXELS
            else "lattice"
        )
    if name not in ("exact", "lattice"):
        raise ValueError(f"{name!r} is not a filter: expected 'auto', 'exact' or 'lattice'")
    return name


__all__ = [
    "EXACT_MAX_PIXELS",
    "BilateralFilter",
    "FilterName",
    "build",
    "build_gaussian",
    "resolve",
]
