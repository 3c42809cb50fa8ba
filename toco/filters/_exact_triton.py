"""The exact bilateral filter as one kernel of Triton, which stores no weights.

A program owns 128 pixels and adds their sums over all pixels of the box, 32 at a time, always in
the same order: the result is deterministic, and no program waits for another. For each pair the
kernel takes the distance as a sum of squared differences in float32. (Integers are exact in half
precision. Blurred or jittered images have no integers, and neither do features in standard
deviations.) It computes the weight by one exp2, and leaves the product of weights and maps to the
matrix units.

The matrix units multiply in bfloat16, with sums in float32. A weight or value is therefore split
into two numbers of 8 bits, ``a = a_high + a_low``, and ``w v`` is computed as ``w_high v_high +
w_high v_low + w_low v_high``. The omitted product and the rounding are below 8e-5 of every term,
and so of every sum of terms of one sign. Unlike float16, bfloat16 has the exponents of float32:
small weights are not lost. The matrix units truncate sums instead of rounding them, which after
thousands of additions could amount to 2e-4. They therefore add only 128 pixels at a time, starting
from zero.

The 32 pixels of a step lie in one row, so that the distance across rows is one number per pixel of
the program. :func:`build` arranges the pixels for that: the box row after row, each row padded to a
multiple of 32 with pixels of value zero. Programs beyond the box end at once. The box is only ever
read on the device: nothing waits for it.

Not measured on a GPU yet. The code that Triton 3.7 compiles for an H100 or H200 takes 15
instructions a pair and 165 registers a thread. That is 2.2 million cycles for one image of 224 x
224 pixels and up to 32 maps, or 1.2 ms at 1.9 GHz without stalls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toco.boxes import full_boxes, inside
from toco.filters._shared import bilateral_features, check_maps

_TARGETS = 128  # pixels of a program
_SOURCES = 32  # pixels of a step
_STEPS_PER_SUM = 4  # 128 pixels before a sum starts from zero again
_MIN_CHANNELS = 16  # the smallest side of a matrix product in Triton
_MAX_CHANNELS = 64  # the sums of more channels do not stay in registers


@dataclass(frozen=True, slots=True)
class FusedFilter:
    """All pairs of pixels inside the box of each image, for maps on the device of the images.

    Attributes:
        features: Column, row and colours of the arranged pixels, centred, in units in which the
            weight of a pair is 2 to the minus squared distance.
        pixels: Index in the image (row by row) of each arranged pixel.
        is_pixel: Whether an arranged pixel is part of the image; the others pad a row.
        places: Index in the arrangement of each pixel of the image; 0 outside the box.
        inside: Pixels in the box.
        counts: Number of arranged pixels of each image.
    """

    features: Float[Tensor, "b 5 points"]
    pixels: Int[Tensor, "b points"]
    is_pixel: Bool[Tensor, "b points"]
    places: Int[Tensor, "b hw"]
    inside: Bool[Tensor, "b h w"]
    counts: Int[Tensor, " b"]

    @torch.no_grad()
    def __call__(self, values: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
        """Filter the maps.

        The relative error is below 1e-4 of a float64 sum for maps without negative values.
        """
        check_maps(values, *self.inside.shape)
        num_maps = values.shape[1]
        num_images, _, num_points = self.features.shape
        channels = min(max(triton.next_power_of_2(num_maps), _MIN_CHANNELS), _MAX_CHANNELS)
        groups = math.ceil(num_maps / channels)

        # Arrange the pixels, and split each value into two numbers of bfloat16.
        by_pixel = values.float().flatten(2).transpose(1, 2)
        arranged = by_pixel.gather(1, self.pixels[:, :, None].expand(-1, -1, num_maps))
        arranged = arranged.where(self.is_pixel[:, :, None], 0)
        high = arranged.bfloat16()
        split = torch.zeros(
            num_images, num_points, 2, groups * channels, dtype=torch.bfloat16, device=values.device
        )
        split[:, :, 0, :num_maps] = high
        split[:, :, 1, :num_maps] = arranged - high

        # Compute the sums, and put them back to the pixels of the image.
        sums = arranged.new_empty(num_images, num_points, groups * channels)
        with torch.cuda.device_of(values):
            _gaussian_sums[(num_points // _TARGETS, num_images, groups)](
                self.features,
                split,
                sums,
                self.counts,
                num_points,
                groups * channels,
                targets_per_program=_TARGETS,
                sources_per_step=_SOURCES,
                steps_per_sum=_STEPS_PER_SUM,
                channels=channels,
                # Triton's interpreter, used for CPU tensors, cannot multiply bfloat16 matrices.
                factor=tl.bfloat16 if values.is_cuda else tl.float32,
                num_warps=4,
                num_stages=2,
            )
        result = sums.gather(1, self.places[:, :, None].expand(-1, -1, num_maps)).transpose(1, 2)
        return result.reshape(values.shape).where(self.inside[:, None], 0).to(values.dtype)


@torch.no_grad()
def build(
    images: Float[Tensor, "b 3 h w"],
    sigma_rgb: float,
    sigma_xy: float,
    boxes: Int[Tensor, "b 4"] | None,
) -> FusedFilter:
    """Build the filter: see ``toco.filters.exact.build``. The boxes lie inside the images."""
    num_images, _, height, width = images.shape
    if boxes is None:
        boxes = full_boxes(num_images, height, width, images.device)
    y0, y1, x0, x1 = boxes.long().T[:, :, None]
    row_length = (x1 - x0 + _SOURCES - 1) // _SOURCES * _SOURCES

    longest_row = math.ceil(width / _SOURCES) * _SOURCES
    num_points = math.ceil(height * longest_row / _TARGETS) * _TARGETS
    point = torch.arange(num_points, device=images.device)
    row, column = point // row_length.clamp(min=1), point % row_length.clamp(min=1)
    is_pixel = (row < y1 - y0) & (column < x1 - x0)
    row, column = row + y0, column + x0
    pixels = (row * width + column).where(is_pixel, 0)

    features = bilateral_features(images.double(), sigma_rgb, sigma_xy)
    # Padding also needs the row number: the kernel reads it from the first of 32 points.
    arranged = features.gather(2, pixels[:, None].expand(-1, 5, -1))
    arranged[:, 1] = row / sigma_xy
    # Centred, because the rounding error in float32 grows with the distance from zero.
    arranged = (arranged - features.mean(2, keepdim=True)) * math.sqrt(math.log2(math.e) / 2)

    in_box = inside(boxes, height, width)
    pixel = torch.arange(height * width, device=images.device)
    places = (pixel // width - y0) * row_length + pixel % width - x0
    return FusedFilter(
        features=arranged.float(),
        pixels=pixels,
        is_pixel=is_pixel,
        places=places.where(in_box.flatten(1), 0),
        inside=in_box,
        counts=((y1 - y0) * row_length)[:, 0].int(),
    )


@triton.jit
@no_type_check  # the type checker under pytest would hide the names that Triton looks up
def _gaussian_sums(
    features,  # noqa: ANN001 - Triton passes pointers, which have no Python type
    values,  # noqa: ANN001
    sums,  # noqa: ANN001
    counts,  # noqa: ANN001
    num_points,  # noqa: ANN001
    num_channels,  # noqa: ANN001
    targets_per_program: tl.constexpr,
    sources_per_step: tl.constexpr,
    steps_per_sum: tl.constexpr,
    channels: tl.constexpr,
    factor: tl.constexpr,
) -> None:
    """Add the sums of one image for 128 targets.

    ``sums[i] = sum over j of 2^-|f_i - f_j|^2 (values[j, 0] + values[j, 1])``.

    Every column and every colour is loaded, none computed, and weights are computed from loaded
    values by arithmetic alone. Triton then computes the weights where the matrix units expect them;
    otherwise it moves each one through memory.
    """
    # Pointers of this program's image, and an early end beyond its box.
    image = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * targets_per_program
    count = tl.load(counts + image)
    if first >= count:
        return
    columns = features + image * 5 * num_points
    rows = columns + num_points
    reds = rows + num_points
    greens = reds + num_points
    blues = greens + num_points
    values += image * num_points * 2 * num_channels
    sums += image * num_points * num_channels

    # Features of the targets.
    target = first + tl.arange(0, targets_per_program)
    channel = tl.program_id(2) * channels + tl.arange(0, channels)
    column = tl.load(columns + target)[:, None]
    row = tl.load(rows + target)
    red = tl.load(reds + target)[:, None]
    green = tl.load(greens + target)[:, None]
    blue = tl.load(blues + target)[:, None]
    # Sums over all sources, 128 at a time.
    total = tl.zeros((targets_per_program, channels), tl.float32)
    for chunk in range(0, count, sources_per_step * steps_per_sum):
        part = tl.zeros((targets_per_program, channels), tl.float32)
        for step in tl.static_range(steps_per_sum):
            start = chunk + step * sources_per_step
            source = start + tl.arange(0, sources_per_step)
            difference = row - tl.load(rows + start)
            exponent = (0.0 - difference * difference)[
                :, None
            ]  # not -d * d, which takes two instructions
            difference = column - tl.load(columns + source)[None, :]
            exponent = exponent - difference * difference
            difference = red - tl.load(reds + source)[None, :]
            exponent = exponent - difference * difference
            difference = green - tl.load(greens + source)[None, :]
            exponent = exponent - difference * difference
            difference = blue - tl.load(blues + source)[None, :]
            exponent = exponent - difference * difference
            weight = tl.exp2(exponent)
            # The upper 16 bits of a float32 are a bfloat16. Truncating takes fewer instructions
            # than rounding.
            weight_high = (weight.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
            weight_low = (weight - weight_high).to(tl.bfloat16).to(factor)
            weight_high = weight_high.to(tl.bfloat16).to(factor)
            value = values + source[:, None] * (2 * num_channels) + channel[None, :]
            value_high = tl.load(value).to(factor)
            value_low = tl.load(value + num_channels).to(factor)
            part = tl.dot(weight_high, value_high, part)
            part = tl.dot(weight_high, value_low, part)
            part = tl.dot(weight_low, value_high, part)
        total += part
    tl.store(sums + target[:, None] * num_channels + channel[None, :], total)
