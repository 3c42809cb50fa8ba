"""How the colours of a view change: what is drawn for an image, and the same as tensors for a batch of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int32
from pydantic import Field, model_validator
from torch import Tensor

from toco.config import Config

Probability = Annotated[float, Field(ge=0, le=1)]
JitterPart = Literal["brightness", "contrast", "saturation", "hue"]

_MAX_BLENDS = 4  # before or after the turn of the hue: three parts of the jitter, and grey
_BLUR_PASSES = 3
_BLUR_ONE = 2**24  # PIL's box filter is in fixed point with 24 bits
_NO_LEVEL = 256


class ColourConfig(Config):
    """How the colours of one view are changed, in this order: jitter, grey, blur, solarise.

    Attributes:
        jitter_probability: Chance of the jitter as a whole; its four parts come in random order.
        brightness: Factor is drawn from 1 - x to 1 + x.
        contrast: As ``brightness``.
        saturation: As ``brightness``.
        hue: Shift is drawn from -x to x, in turns of the colour wheel.
        grey_probability: Chance of a grey image.
        blur_probability: Chance of a Gaussian blur.
        blur_radius: Range of its radius in px (PIL's, the standard deviation).
        solarise_probability: Chance that levels from ``solarise_threshold`` on are inverted.
        solarise_threshold: Lowest level that is inverted.
    """

    jitter_probability: Probability = 0.8
    brightness: float = Field(default=0.4, ge=0, le=1)
    contrast: float = Field(default=0.4, ge=0, le=1)
    saturation: float = Field(default=0.2, ge=0, le=1)
    hue: float = Field(default=0.1, ge=0, le=0.5)
    grey_probability: Probability = 0.2
    blur_probability: Probability = 1.0
    blur_radius: tuple[float, float] = (0.1, 2.0)
    solarise_probability: Probability = 0.0
    solarise_threshold: int = Field(default=128, ge=0, le=256)

    @model_validator(mode="after")
    def _ordered(self) -> ColourConfig:
        if not 0 <= self.blur_radius[0] <= self.blur_radius[1]:
            raise ValueError(f"blur_radius: expected 0 <= low <= high, got {self.blur_radius}")
        return self


class Colour(NamedTuple):
    """What was drawn for one view; the default changes nothing.

    Attributes:
        jitter: Parts in their order, each with its factor (1 changes nothing) or, for the hue, its shift in turns.
        grey: Whether the view becomes grey.
        blur_radius: Radius of the blur in px, 0 for none.
        solarise_from: Lowest level that is inverted, 256 for none.
    """

    jitter: tuple[tuple[JitterPart, float], ...] = ()
    grey: bool = False
    blur_radius: float = 0.0
    solarise_from: int = _NO_LEVEL


def draw_colour(rng: np.random.Generator, config: ColourConfig) -> Colour:
    """Draw every change of ``config``, in a fixed order of random numbers."""
    jitter = _draw_jitter(rng, config) if rng.random() < config.jitter_probability else ()
    grey = bool(rng.random() < config.grey_probability)
    blur_radius = rng.uniform(*config.blur_radius) if rng.random() < config.blur_probability else 0.0
    solarise = rng.random() < config.solarise_probability
    return Colour(jitter, grey, blur_radius, config.solarise_threshold if solarise else _NO_LEVEL)


def _draw_jitter(rng: np.random.Generator, config: ColourConfig) -> tuple[tuple[JitterPart, float], ...]:
    parts: tuple[tuple[JitterPart, float, float], ...] = (
        ("brightness", 1.0, config.brightness),
        ("contrast", 1.0, config.contrast),
        ("saturation", 1.0, config.saturation),
        ("hue", 0.0, config.hue),
    )
    drawn = []
    for i in rng.permutation(len(parts)):
        part, centre, spread = parts[i]
        # Drawn also where it is not applied, so that one strength does not change the others' random numbers.
        amount = rng.uniform(centre - spread, centre + spread)
        if spread:
            drawn.append((part, amount))
    return tuple(drawn)


@dataclass(frozen=True, slots=True)
class Colours:
    """The changes of ``n`` views in the form in which a device applies them to all at once, whatever their orders.

    Brightness, contrast, saturation and grey are one operation with different weights, a blend: a jitter is some
    blends, the turn of the hue, and some more blends, and a view that has less is given blends that change nothing.

    Attributes:
        blends: Blends before and after the turn of the hue: the factor, and how much of the mean grey level and of the
            grey view the other side of the blend has.
        hue_step: By how many of 256 steps the hue is turned; -1 where the colours are not taken apart at all, which
            differs from 0 as the way there and back rounds.
        blur: Fixed-point weights of the box filter that makes the blur in three passes: of a pixel, of its neighbours
            at a distance of 1, 2, ...
        solarise_from: Lowest level that is inverted, 256 for none.
    """

    blends: Float32[Tensor, "n 2 blends 3"]
    hue_step: Int32[Tensor, " n"]
    blur: Int32[Tensor, "n taps"]
    solarise_from: Int32[Tensor, " n"]

    @classmethod
    def of(cls, drawn: Sequence[Colour]) -> Colours:
        """The tensors of what was drawn."""
        blends = np.zeros((len(drawn), 2, _MAX_BLENDS, 3), dtype=np.float32)
        blends[..., 0] = 1
        hue_step = np.full(len(drawn), -1, dtype=np.int32)
        for view, colour in enumerate(drawn):
            after, slot = 0, 0
            # A grey view is one without saturation.
            for part, amount in (*colour.jitter, *([("saturation", 0.0)] if colour.grey else [])):
                if part == "hue":
                    hue_step[view] = int(amount * 255) % 256
                    after, slot = 1, 0
                else:
                    blends[view, after, slot] = amount, part == "contrast", part == "saturation"
                    slot += 1
        boxes = [_box_filter(colour.blur_radius) for colour in drawn]
        blur = np.zeros((len(drawn), max(map(len, boxes))), dtype=np.int32)
        for view, box in enumerate(boxes):
            blur[view, : len(box)] = box
        solarise_from = np.array([colour.solarise_from for colour in drawn], dtype=np.int32)
        return cls(*map(torch.from_numpy, (blends, hue_step, blur, solarise_from)))

    def __getitem__(self, views: slice) -> Colours:
        """Those of some of the views."""
        return Colours(*(getattr(self, f.name)[views] for f in fields(self)))

    def to(self, device: torch.device | str) -> Colours:
        """The same on ``device`` (copies are asynchronous where the memory is pinned)."""
        return Colours(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def pin_memory(self) -> Colours:
        """The same in page-locked memory."""
        return Colours(*(getattr(self, f.name).pin_memory() for f in fields(self)))


def _box_filter(sigma: float) -> list[int]:
    """Weights of the box filter that, applied three times, PIL takes for a Gaussian of ``sigma`` px.

    Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering" (SSVM 2011), equations
    7, 11 and 14: a box of odd length with a smaller weight at either end. In single precision, as PIL computes it.
    """
    f32 = np.float32
    variance = f32(sigma) * f32(sigma) / f32(_BLUR_PASSES)
    length = f32(math.sqrt(12.0 * float(variance) + 1.0))
    whole = f32(math.floor((float(length) - 1.0) / 2.0))
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) * (whole + 1)))
    radius = whole + part
    inner = int(f32(_BLUR_ONE) / (radius * 2 + 1))
    outer = (_BLUR_ONE - (2 * int(radius) + 1) * inner) // 2
    return [inner] * (int(radius) + 1) + [outer] * (outer > 0)
