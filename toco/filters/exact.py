"""The exact bilateral filter: the Gaussian-weighted sum over all pairs of pixels, by tiles.

This is the version in torch. On CUDA one kernel of Triton replaces it, where Triton is installed
(``toco.filters._exact_triton``).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toco.boxes import clip, inside
from toco.filters import BilateralFilter
from toco.filters._shared import ImageByImage, bilateral_features

# exp(-60) is 1e-26, negligible in a float32 sum. Below about -87 exp returns denormal numbers,
# which are 10 to 20 times slower.
_MIN_EXPONENT = -60.0
_LOG2_E = math.log2(math.e)

# A tile is stored once in float64 (exponents) and once in the dtype of the filter (weights). On a
# CPU that is 0.75 MB, which stays in the second-level cache (256 rows were the fastest of 128 to
# 2048, measured). Elsewhere it is 192 MB, so that few kernels are launched.
_CPU_TILE_ROWS = 256
_ACCELERATOR_TILE_ROWS = 4096


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """Multiply matrices in their own dtype: no autocast, TF32 or bfloat16.

    The settings of the training do not matter inside this context.
    """
    mkldnn: Any = torch.backends.mkldnn  # its attributes are made at run time
    backends = (torch.backends.cuda.matmul, mkldnn.matmul)
    precisions = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, precisions, strict=True):
            backend.fp32_precision = precision


@dataclass(frozen=True, slots=True)
class _Image:
    """All pairs of pixels inside the box of one image.

    The relative error is below 1e-4 of a float64 sum, also in float32.

    Attributes:
        left_factor: First factor of the matrix of exponents, to base 2, in float64: entry i, j of
            ``left_factor @ right_factor`` is -|f_i - f_j|^2 / 2 * log2(e).
        right_factor: Second factor.
        rows: Rows of the image inside the box; the result is 0 elsewhere.
        columns: Columns of the image inside the box.
        dtype: Type of the weights and sums.
        tile_rows: Side of the square tile of weights that is in memory at a time.
    """

    left_factor: Float[Tensor, "pixels 7"]
    right_factor: Float[Tensor, "7 pixels"]
    rows: slice
    columns: slice
    dtype: torch.dtype
    tile_rows: int

    def __call__(self, values: Float[Tensor, "k h w"]) -> Float[Tensor, "k h w"]:
        cropped = values[:, self.rows, self.columns].to(self.dtype)
        result = values.new_zeros(values.shape, dtype=self.dtype)
        with _full_precision(values.device.type):
            result[:, self.rows, self.columns] = self._sums(cropped.flatten(1)).view_as(cropped)
        return result

    def _sums(self, flat: Float[Tensor, "k pixels"]) -> Float[Tensor, "k pixels"]:
        result = torch.zeros_like(flat)
        num_pixels = flat.shape[1]
        tile_size = min(self.tile_rows, num_pixels) ** 2
        exponents, tile = self.left_factor.new_empty(tile_size), flat.new_empty(tile_size)
        starts = range(0, num_pixels, self.tile_rows)
        for first in starts:
            rows = slice(first, min(first + self.tile_rows, num_pixels))
            for second in starts[first // self.tile_rows :]:
                columns = slice(second, min(second + self.tile_rows, num_pixels))
                weights = self._weights(rows, columns, exponents, tile)
                result[:, columns].addmm_(flat[:, rows], weights)
                if second > first:  # the kernel is symmetric: a tile also serves its transpose
                    result[:, rows].addmm_(flat[:, columns], weights.T)
        return result

    def _weights(
        self,
        rows: slice,
        columns: slice,
        exponents: Float[Tensor, " size"],
        tile: Float[Tensor, " size"],
    ) -> Float[Tensor, "rows columns"]:
        """Compute the weights of one tile, in the memory of ``tile``."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        size = math.prod(shape)
        exponent = torch.mm(
            self.left_factor[rows], self.right_factor[:, columns], out=exponents[:size].view(shape)
        )
        weights = tile[:size].view(shape).copy_(exponent)
        # Base 2, because torch.exp2 is four times as fast as torch.exp on a CPU (measured, torch
        # 2.13).
        return weights.clamp_(min=_MIN_EXPONENT * _LOG2_E).exp2_()


@torch.no_grad()
def build(
    images: Float[Tensor, "b 3 h w"],
    sigma_rgb: float,
    sigma_xy: float,
    boxes: Int[Tensor, "b 4"] | None = None,
    tile_rows: int | None = None,
) -> BilateralFilter:
    """Build the exact filter; it computes in float64 for float64 images, else in float32.

    The fused kernel of Triton needs images on CUDA (compute capability 8.0 or more) in at most
    float32, and an installed Triton, which torch for CUDA on Linux brings.
    Elsewhere torch gives the same result within 1e-4, more slowly. Neither waits for the device.

    Args:
        images: Colours in the unit of ``sigma_rgb``.
        sigma_rgb: Standard deviation in colour.
        sigma_xy: Standard deviation in position, pixels.
        boxes: See ``toco.filters.build``. The fused kernel, and torch on a CPU, leave pixels
            outside the box out of the sums; torch on another device adds zeros for them.
        tile_rows: Side of the tile of weights in torch; by default 256 on a CPU, 4096 elsewhere.
    """
    if boxes is not None:
        boxes = clip(boxes, *images.shape[2:])
    if has_fused_kernel(images):
        from toco.filters import _exact_triton

        return _exact_triton.build(images, sigma_rgb, sigma_xy, boxes)
    on_cpu = images.device.type == "cpu"
    tile_rows = tile_rows or (_CPU_TILE_ROWS if on_cpu else _ACCELERATOR_TILE_ROWS)
    num_images, _, height, width = images.shape
    crops = boxes.tolist() if boxes is not None and on_cpu else [(0, height, 0, width)] * num_images
    return ImageByImage(
        images=tuple(
            _prepare(image, slice(y0, y1), slice(x0, x1), sigma_rgb, sigma_xy, tile_rows)
            for image, (y0, y1, x0, x1) in zip(images, crops, strict=True)
        ),
        # On a CPU the images were cropped to their boxes above.
        inside=None if boxes is None or on_cpu else inside(boxes, height, width),
        size=(height, width),
    )


@dataclass(frozen=True, slots=True)
class _Separable:
    """The Gaussian of position alone: a matrix of weights each for rows and columns."""

    rows: Float[Tensor, "h h"]
    columns: Float[Tensor, "w w"]

    def __call__(self, values: Float[Tensor, "k h w"]) -> Float[Tensor, "k h w"]:
        with _full_precision(values.device.type):
            return self.rows @ values.to(self.rows.dtype) @ self.columns


@torch.no_grad()
def build_gaussian(images: Float[Tensor, "b 3 h w"], sigma_xy: float) -> ImageByImage:
    """Build the exact filter of position, which all images share.

    It is separable, and so cheap.
    """
    height, width = images.shape[2:]
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32

    def weights(length: int) -> Float[Tensor, "length length"]:
        coordinate = torch.arange(length, dtype=torch.float64, device=images.device) / sigma_xy
        return (-(coordinate[:, None] - coordinate).square() / 2).exp().to(dtype)

    image = _Separable(weights(height), weights(width))
    return ImageByImage(images=(image,) * len(images), inside=None, size=(height, width))


def has_fused_kernel(images: Float[Tensor, "b 3 h w"]) -> bool:
    """Whether these images use the kernel of Triton, which multiplies in bfloat16."""
    if (
        not images.is_cuda
        or images.dtype == torch.float64
        or importlib.util.find_spec("triton") is None
    ):
        return False
    return torch.version.cuda is not None and torch.cuda.get_device_capability(images.device) >= (
        8,
        0,
    )


def _prepare(
    image: Float[Tensor, "3 h w"],
    rows: slice,
    columns: slice,
    sigma_rgb: float,
    sigma_xy: float,
    tile_rows: int,
) -> _Image:
    features = bilateral_features(image[:, rows, columns].double(), sigma_rgb, sigma_xy)
    # -|a - b|^2 / 2 is a.b - |a|^2 / 2 - |b|^2 / 2, one product of matrices. Its terms are larger
    # than their sum, so features are centred and in float64: in float32 narrow kernels had errors
    # of 2e-4.
    features = features - features.mean(1, keepdim=True)
    half_square = features.square().sum(0, keepdim=True) / 2
    ones = torch.ones_like(half_square)
    return _Image(
        left_factor=torch.cat([features, -half_square, -ones]).T.contiguous() * _LOG2_E,
        right_factor=torch.cat([features, ones, half_square]),
        rows=rows,
        columns=columns,
        dtype=torch.float64 if image.dtype == torch.float64 else torch.float32,
        tile_rows=tile_rows,
    )
