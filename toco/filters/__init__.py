"""Bilateral filters over all pixels behind one interface: the exact Gaussian sum and the permutohedral lattice.

A module of this package is a filter, named as the file is, and defines ``build(image, sigma_rgb, sigma_xy)``: what
depends on the image is computed there, once, and the filter that comes back takes any number of maps in one call.
"""

from __future__ import annotations

from typing import Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from toco.registry import load

FilterName = Literal["exact", "lattice"]

EXACT_MAX_PIXELS = 64 * 64
"""Largest image that ``resolve("auto", ...)`` filters exactly on a CPU.

Measured on one thread of an AVX-512 CPU with 21 maps, build and filtering together, best of several (exact | lattice):
28 x 28 0.8 | 0.9 ms, 32 x 32 1.2 | 1.0 ms, 56 x 56 9.6 | 2 ms, 112 x 112 141 | 6 to 10 ms, 224 x 224 2.4 s | 23 ms.
"""


@runtime_checkable
class BilateralFilter(Protocol):
    """Unnormalised Gaussian sum over all pixels of one image, the pixel itself included, for each map in ``values``."""

    def __call__(self, values: Float[Tensor, "k h w"]) -> Float[Tensor, "k h w"]:
        """Filter ``k`` maps of the size of the image; the result has their dtype and no gradient."""
        ...


def build(name: str, image: Float[Tensor, "3 h w"], sigma_rgb: float, sigma_xy: float) -> BilateralFilter:
    """The filter ``name`` for one image.

    Args:
        name: "exact" or "lattice" (``resolve`` turns "auto" into one of them).
        image: Colours in the unit of ``sigma_rgb``, usually 0 to 255.
        sigma_rgb: Standard deviation of the kernel in colour.
        sigma_xy: Standard deviation of the kernel in position, in pixels of this image.

    Raises:
        ValueError: There is no such filter, or a standard deviation is not positive.
    """
    if not (sigma_rgb > 0 and sigma_xy > 0):
        raise ValueError(f"expected positive standard deviations, got sigma_rgb={sigma_rgb} and sigma_xy={sigma_xy}")
    return cast(BilateralFilter, load(__name__, name).build(image, sigma_rgb, sigma_xy))


def resolve(
    name: Literal["auto", "exact", "lattice"],
    device: torch.device | str,
    num_pixels: int,
    exact_max_pixels: int = EXACT_MAX_PIXELS,
) -> FilterName:
    """The filter that ``name`` means for images of ``num_pixels`` on ``device``.

    "auto" is exact where that is cheap, on any device that is not a CPU and for small images, and the lattice
    otherwise. The two are not interchangeable in size: see ``toco.losses.dense_energy`` on ``energy_scale``.

    Args:
        name: "auto", "exact" or "lattice".
        device: Where the images are.
        num_pixels: Pixels of the image that is filtered, after any down-scaling.
        exact_max_pixels: Largest image that "auto" filters exactly on a CPU.

    >>> resolve("auto", "cpu", 32 * 32), resolve("auto", "cpu", 224 * 224), resolve("auto", "cuda", 224 * 224)
    ('exact', 'lattice', 'exact')
    """
    if name == "auto":
        return "exact" if torch.device(device).type != "cpu" or num_pixels <= exact_max_pixels else "lattice"
    if name not in ("exact", "lattice"):
        raise ValueError(f"{name!r} is not a filter: expected 'auto', 'exact' or 'lattice'")
    return name


__all__ = ["EXACT_MAX_PIXELS", "BilateralFilter", "FilterName", "build", "resolve"]
