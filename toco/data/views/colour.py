"""Random colour changes of a view: their configuration and their draws."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from toco.config import Config

Probability = Annotated[float, Field(ge=0, le=1)]
JitterPart = Literal["brightness", "contrast", "saturation", "hue"]

_NO_LEVEL = 256  # above every level, so that none is inverted


class ColourConfig(Config):
    """Colour changes of one view, in this order: jitter, grey, blur, solarise.

    Attributes:
        jitter_probability: Probability of the jitter; its four parts are applied in random order.
        brightness: Half-width x of the range [1 - x, 1 + x] of the factor.
        contrast: As ``brightness``.
        saturation: As ``brightness``.
        hue: Half-width x of the range [-x, x] of the shift, in turns of the colour wheel.
        grey_probability: Probability of a grey image.
        blur_probability: Probability of a Gaussian blur.
        blur_radius: Range of the blur's radius in px (as in PIL, the standard deviation).
        solarise_probability: Probability that levels from ``solarise_threshold`` on are inverted.
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
    """Drawn colour changes of one view; the default changes nothing.

    Attributes:
        jitter: Ordered parts, each with its factor (1 changes nothing) or, for the hue, its shift
            in turns.
        grey: Whether the view becomes grey.
        blur_radius: Radius of the blur in px; 0 for none.
        solarise_from: Lowest level that is inverted; 256 for none.
    """

    jitter: tuple[tuple[JitterPart, float], ...] = ()
    grey: bool = False
    blur_radius: float = 0.0
    solarise_from: int = _NO_LEVEL


def draw_colour(rng: np.random.Generator, config: ColourConfig) -> Colour:
    """Draw every change of ``config``, in a fixed order of random numbers."""
    jitter = _draw_jitter(rng, config) if rng.random() < config.jitter_probability else ()
    grey = bool(rng.random() < config.grey_probability)
    blur_radius = (
        rng.uniform(*config.blur_radius) if rng.random() < config.blur_probability else 0.0
    )
    solarise = rng.random() < config.solarise_probability
    return Colour(jitter, grey, blur_radius, config.solarise_threshold if solarise else _NO_LEVEL)


def _draw_jitter(
    rng: np.random.Generator, config: ColourConfig
) -> tuple[tuple[JitterPart, float], ...]:
    parts: tuple[tuple[JitterPart, float, float], ...] = (
        ("brightness", 1.0, config.brightness),
        ("contrast", 1.0, config.contrast),
        ("saturation", 1.0, config.saturation),
        ("hue", 0.0, config.hue),
    )
    jitter = []
    for i in rng.permutation(len(parts)):
        part, centre, spread = parts[i]
        # Draw even if the part is not applied: the strength of one part must not change the random
        # numbers of others.
        amount = rng.uniform(centre - spread, centre + spread)
        if spread:
            jitter.append((part, amount))
    return tuple(jitter)
