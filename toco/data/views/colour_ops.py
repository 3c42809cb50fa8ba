"""Colour changes of many views at once, on any device, with the same levels as PIL.

PIL truncates to integer levels after every operation. Each step here uses numbers in which it is
exact or rounds as in PIL: single precision for blends (integers up to 2^24), double precision where
PIL has it, and integers for the blur. Each arithmetic operation is a separate kernel: a fused
multiply-add would round once instead of twice, and could give another level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Shaped, UInt8
from torch import Tensor

from toco.data.views.colour import Colour

_CPU_PIXELS = 2**16
"""Number of pixels that a CPU changes at a time, so that they stay in its cache."""
_RED, _GREEN, _BLUE = 19595.0, 38470.0, 7471.0  # of 2^16: ITU-R 601-2, as PIL rounds it
_GREY_ONE = 65536.0  # 1 in the fixed point of these weights
_MAX_BLENDS = 4  # before or after the hue shift: three parts of the jitter, and grey
_BLUR_PASSES = 3  # box filters that PIL applies for a Gaussian
_BLUR_BITS = 24  # fixed-point bits of PIL's box filter
_MIDDLE = 128  # levels are blurred as -128..127, so that their weighted sum fits into 32 bits


@dataclass(frozen=True, slots=True)
class Colours:
    """Colour changes of ``n`` views, as tensors that a device applies to all views at once.

    Brightness, contrast, saturation and grey are the same operation with different weights, a
    blend. A jitter consists of blends, a hue shift, and further blends, in any order; unused places
    have blends that change nothing.

    Attributes:
        blends: Blends before and after the hue shift: the factor, and the weights of the mean grey
            level and of the grey view in the image with which the view is blended.
        hue_step: Hue shift in steps of 1/256 turn; -1 without conversion to HSV. A shift of 0 steps
            is different, because the conversion to HSV and back rounds.
        blur: Fixed-point weights of the box filter, of which three passes make the blur: of the
            pixel itself, and of its neighbours at distance 1, 2, ...
        solarise_from: Lowest level that is inverted; 256 for none.
    """

    blends: Float32[Tensor, "n 2 blends 3"]
    hue_step: Int32[Tensor, " n"]
    blur: Int32[Tensor, "n taps"]
    solarise_from: Int32[Tensor, " n"]

    @classmethod
    def of(cls, changes: Sequence[Colour]) -> Colours:
        """Convert drawn colour changes to tensors."""
        blends = np.zeros((len(changes), 2, _MAX_BLENDS, 3), dtype=np.float32)
        blends[..., 0] = 1
        hue_step = np.full(len(changes), -1, dtype=np.int32)
        for view, colour in enumerate(changes):
            after, slot = 0, 0
            # A grey view has the saturation 0.
            for part, amount in (*colour.jitter, *([("saturation", 0.0)] if colour.grey else [])):
                if part == "hue":
                    hue_step[view] = int(amount * 255) % 256
                    after, slot = 1, 0
                else:
                    blends[view, after, slot] = amount, part == "contrast", part == "saturation"
                    slot += 1
        boxes = [_box_filter(colour.blur_radius) for colour in changes]
        blur = np.zeros((len(changes), max(map(len, boxes))), dtype=np.int32)
        for view, box in enumerate(boxes):
            blur[view, : len(box)] = box
        solarise_from = np.array([colour.solarise_from for colour in changes], dtype=np.int32)
        return cls(*map(torch.from_numpy, (blends, hue_step, blur, solarise_from)))

    def __getitem__(self, views: slice) -> Colours:
        """Select some of the views."""
        return Colours(*(getattr(self, f.name)[views] for f in fields(self)))

    def to(self, device: torch.device | str) -> Colours:
        """Copy to ``device``, asynchronously from pinned memory."""
        return Colours(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def pin_memory(self) -> Colours:
        """Copy to page-locked memory."""
        return Colours(*(getattr(self, f.name).pin_memory() for f in fields(self)))


def change_colours(pixels: UInt8[Tensor, "n 3 h w"], colours: Colours) -> UInt8[Tensor, "n 3 h w"]:
    """Apply ``colours`` to ``pixels``, without waiting for the device.

    Args:
        pixels: Views, on any device.
        colours: Colour changes, on the host: it decides which operations to skip without asking the
            device.

    Returns:
        The changed views, with the size and device of ``pixels``.
    """
    if pixels.device.type != "cpu":
        return _change(pixels, colours, colours.to(pixels.device))
    at_a_time = max(_CPU_PIXELS // (pixels.shape[2] * pixels.shape[3]), 1)
    result = torch.empty(pixels.shape, dtype=torch.uint8)
    for start in range(0, len(pixels), at_a_time):
        piece = slice(start, start + at_a_time)
        result[piece] = _change(pixels[piece], colours[piece], colours[piece])
    return result


def _change(
    pixels: UInt8[Tensor, "n 3 h w"], host_colours: Colours, colours: Colours
) -> UInt8[Tensor, "n 3 h w"]:
    """Apply ``colours``; its copy on the host, ``host_colours``, decides what to skip."""
    blends = host_colours.blends.numpy()
    used_slots = (blends[..., 0] != 1).any(axis=0)
    turns_hue = host_colours.hue_step.numpy() >= 0
    needs_other = (blends[..., 1:] != 0).any(axis=0)
    levels = pixels.float()
    for after in (0, 1):
        if after and turns_hue.any():
            turned = _turn_hue(levels, colours.hue_step)
            levels = (
                turned
                if turns_hue.all()
                else torch.where(_column(colours.hue_step) < 0, levels, turned)
            )
        for slot in used_slots[after].nonzero()[0].tolist():
            _blend(levels, colours.blends[:, after, slot], *needs_other[after, slot].tolist())
    if (host_colours.blur.numpy()[:, 1:] != 0).any():
        levels = _blur(levels, colours.blur)
    if (host_colours.solarise_from.numpy() < 256).any():
        levels = torch.where(levels < _column(colours.solarise_from), levels, 255 - levels)
    return levels.to(torch.uint8)


def _blend(
    levels: Float32[Tensor, "n 3 h w"], blend: Float32[Tensor, "n 3"], to_mean: bool, to_grey: bool
) -> None:
    """Blend the levels with another image, in place.

    The other image is black for brightness, the mean grey level for contrast, and the grey view for
    saturation.
    """
    factor, of_mean, of_grey = (_column(weight) for weight in blend.unbind(1))
    if not (to_mean or to_grey):
        levels.mul_(factor).clamp_(max=255).floor_()
        return
    grey = _grey(levels)
    other = grey * of_grey
    if to_mean:
        # The sum over a large view needs more digits than single precision has.
        total = grey.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64)
        mean = _divide(total, float(grey[0].numel())).add_(0.5).floor_()
        other += mean.float().mul_(of_mean)
    levels.sub_(other).mul_(factor).add_(other).clamp_(0, 255).floor_()


def _grey(levels: Float32[Tensor, "n 3 h w"]) -> Float32[Tensor, "n 1 h w"]:
    red, green, blue = levels.split(1, dim=1)
    # Exact: every term and every sum is an integer below 2^24.
    weighed: Tensor = red * _RED + green * _GREEN + blue * _BLUE
    return weighed.add_(_GREY_ONE / 2).mul_(1 / _GREY_ONE).floor_()


def _turn_hue(
    levels: Float32[Tensor, "n 3 h w"], steps: Int32[Tensor, " n"]
) -> Float32[Tensor, "n 3 h w"]:
    """Shift the hue, with hue, saturation and value in 256 levels each."""
    hue, saturation, value = _hsv(levels)
    hue = hue + _column(steps)
    hue -= 256 * (hue >= 256)
    sixths = _divide(hue.double().mul_(6), 255.0)
    sector = sixths.floor()
    fraction, sector = (sixths - sector).float(), sector.float()
    even = 1 - (sector - 2 * (sector / 2).floor_())
    strength = _divide(saturation, 255.0)

    def level(missing: Float32[Tensor, "n 1 h w"]) -> Float32[Tensor, "n 1 h w"]:
        return (1 - missing).mul_(value).add_(0.5).floor_()

    low, middle = level(strength), level(strength * (even - fraction).abs_())
    # On the wheel of six sectors each colour channel is low in two adjacent sectors; the constants
    # are the points between the two. It has the middle level in the sectors next to these, and the
    # highest level in the opposite two.
    lowest = torch.arange(2.5, 7, 2, device=levels.device).view(3, 1, 1)
    away = (sector - lowest).abs_().sub_(3).abs_()
    # 512 exceeds all levels, so that clamp_ selects low, middle or the highest level.
    return middle.add(1.5 - away, alpha=512).clamp_(low, value)


def _hsv(
    levels: Float32[Tensor, "n 3 h w"],
) -> tuple[Float32[Tensor, "n 1 h w"], Float32[Tensor, "n 1 h w"], Float32[Tensor, "n 1 h w"]]:
    """Convert RGB to hue, saturation and value, each in integer levels 0..255."""
    value, lowest = levels.amax(dim=1, keepdim=True), levels.amin(dim=1, keepdim=True)
    chroma = value - lowest
    # Grey pixels have hue and saturation 0 with any divisor; 1 avoids a division by 0.
    red, green, blue = ((value - levels) / chroma.clamp(min=1)).split(1, dim=1)
    # 1 for the first of the highest channels and 0 for the others: on a CPU products are much
    # faster than torch.where.
    is_red = 1 - red.sign()
    is_green = (1 - green.sign()).mul_(1 - is_red)
    is_blue = 1 - is_red - is_green
    plus = (is_red * blue).add_(is_green * red).add_(is_blue * green)
    minus = (is_red * green).add_(is_green * blue).add_(is_blue * red)
    sixths = (is_green * 2).add_(is_blue * 4).double().add_(plus).sub_(minus).float()
    # Alternate single and double precision as PIL does: an error of one level of hue changes a
    # colour by up to six levels.
    turns = _divide(sixths.double(), 6.0).add_(1).frac_().float()
    hue = turns.double().mul_(255).floor_().float()
    return hue, (chroma / value.clamp(min=1)).mul_(255).floor_(), value


def _blur(
    levels: Float32[Tensor, "n 3 h w"], weights: Int32[Tensor, "n taps"]
) -> Float32[Tensor, "n 3 h w"]:
    """Apply three box filters along rows and three along columns, each in integer levels."""
    taps = [_column(weight) for weight in weights.unbind(1)]
    # The weights sum to slightly less than 1; correct the offset of _MIDDLE for that, and add half
    # a level for rounding.
    missing_weight = 2**_BLUR_BITS - (2 * weights.sum(dim=1, dtype=torch.int32) - weights[:, 0])
    rounding = _column(2 ** (_BLUR_BITS - 1) - _MIDDLE * missing_weight)
    shifted = (levels - _MIDDLE).to(torch.int32)
    for dim in (3, 3, 3, 2, 2, 2):
        shifted = _filter_box(shifted, taps, dim).add_(rounding).bitwise_right_shift_(_BLUR_BITS)
    return shifted.float().add_(_MIDDLE)


def _filter_box(
    levels: Int32[Tensor, "n 3 h w"], taps: list[Int32[Tensor, "n 1 1 1"]], dim: int
) -> Int32[Tensor, "n 3 h w"]:
    """Sum the weighted neighbours along ``dim``; edge pixels are repeated beyond the edge."""
    reach, size = len(taps) - 1, levels.shape[dim]
    first, last = levels.narrow(dim, 0, 1), levels.narrow(dim, size - 1, 1)
    padded = torch.cat([*[first] * reach, levels, *[last] * reach], dim=dim)
    total = levels * taps[0]
    for distance in range(1, reach + 1):
        before, after = (padded.narrow(dim, reach + away, size) for away in (-distance, distance))
        total += (before + after).mul_(taps[distance])
    return total


def _divide(numbers: Float[Tensor, "*shape"], by: float) -> Float[Tensor, "*shape"]:
    # Divide by a tensor: CUDA multiplies by the reciprocal of a number, which rounds differently.
    return numbers / torch.full((), by, dtype=numbers.dtype, device=numbers.device)


def _column(per_view: Shaped[Tensor, " n"]) -> Shaped[Tensor, "n 1 1 1"]:
    return per_view.view(-1, 1, 1, 1)


def _box_filter(sigma: float) -> list[int]:
    """Compute the weights of the box filter with which PIL approximates a Gaussian in three passes.

    Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering"
    (SSVM 2011), equations 7, 11 and 14: a box of odd length with a smaller weight at either end.
    Single precision, as in PIL. ``sigma`` is in px.
    """
    f32 = np.float32
    variance = f32(sigma) * f32(sigma) / f32(_BLUR_PASSES)
    length = f32(math.sqrt(12.0 * float(variance) + 1.0))
    whole_radius = f32(math.floor((float(length) - 1.0) / 2.0))
    fraction = (
        (2 * whole_radius + 1)
        * (whole_radius * (whole_radius + 1) - 3 * variance)
        / (6 * (variance - (whole_radius + 1) * (whole_radius + 1)))
    )
    radius = whole_radius + fraction
    inner = int(f32(2**_BLUR_BITS) / (radius * 2 + 1))
    outer = (2**_BLUR_BITS - (2 * int(radius) + 1) * inner) // 2
    return [inner] * (int(radius) + 1) + [outer] * (outer > 0)
