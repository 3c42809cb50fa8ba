"""Colour operations of the training views on PIL images, as torchvision's PIL backend defines them."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from pydantic import Field, model_validator

from toco.config import Config

Probability = Annotated[float, Field(ge=0, le=1)]


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


def change_colours(image: Image.Image, rng: np.random.Generator, config: ColourConfig) -> Image.Image:
    """Draw and apply every change of ``config``."""
    if rng.random() < config.jitter_probability:
        image = _jitter(image, rng, config)
    if rng.random() < config.grey_probability:
        image = grey(image)
    if rng.random() < config.blur_probability:
        image = blur(image, rng.uniform(*config.blur_radius))
    if rng.random() < config.solarise_probability:
        image = solarise(image, config.solarise_threshold)
    return image


def adjust_brightness(image: Image.Image, factor: float) -> Image.Image:
    """Blend with black: 0 is black, 1 the image."""
    return ImageEnhance.Brightness(image).enhance(factor)


def adjust_contrast(image: Image.Image, factor: float) -> Image.Image:
    """Blend with the image's mean grey."""
    return ImageEnhance.Contrast(image).enhance(factor)


def adjust_saturation(image: Image.Image, factor: float) -> Image.Image:
    """Blend with the grey image."""
    return ImageEnhance.Color(image).enhance(factor)


def adjust_hue(image: Image.Image, shift: float) -> Image.Image:
    """Turn the colour wheel by ``shift`` of a turn, in steps of 1/256 and cut towards zero."""
    hue, saturation, value = image.convert("HSV").split()
    step = int(shift * 255) % 256
    turned = Image.fromarray(np.asarray(hue) + np.uint8(step))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def grey(image: Image.Image) -> Image.Image:
    """The grey image, in three equal channels."""
    return image.convert("L").convert("RGB")


def blur(image: Image.Image, radius: float) -> Image.Image:
    """Gaussian blur (PIL's, by three box filters)."""
    return image.filter(ImageFilter.GaussianBlur(radius))


def solarise(image: Image.Image, threshold: int) -> Image.Image:
    """Invert the levels from ``threshold`` on."""
    return ImageOps.solarize(image, threshold)


def _jitter(image: Image.Image, rng: np.random.Generator, config: ColourConfig) -> Image.Image:
    parts = (
        (adjust_brightness, 1.0, config.brightness),
        (adjust_contrast, 1.0, config.contrast),
        (adjust_saturation, 1.0, config.saturation),
        (adjust_hue, 0.0, config.hue),
    )
    for i in rng.permutation(len(parts)):
        adjust, centre, spread = parts[i]
        # Drawn also where it is not applied, so that one strength does not change the others' random numbers.
        amount = rng.uniform(centre - spread, centre + spread)
        if spread:
            image = adjust(image, amount)
    return image
