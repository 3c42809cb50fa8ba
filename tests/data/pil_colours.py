"""The colours of a view as PIL's own operations change them, one image after the other: the second
implementation.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from toco.data import ColourConfig


def change_colours(
    image: Image.Image, rng: np.random.Generator, config: ColourConfig
) -> Image.Image:
    """Draw and apply every change of ``config``, each when it is drawn."""
    if rng.random() < config.jitter_probability:
        parts = (
            (brightness, 1.0, config.brightness),
            (contrast, 1.0, config.contrast),
            (saturation, 1.0, config.saturation),
            (hue, 0.0, config.hue),
        )
        for i in rng.permutation(len(parts)):
            adjust, centre, spread = parts[i]
            amount = rng.uniform(centre - spread, centre + spread)
            if spread:
                image = adjust(image, amount)
    if rng.random() < config.grey_probability:
        image = grey(image)
    if rng.random() < config.blur_probability:
        image = blur(image, rng.uniform(*config.blur_radius))
    if rng.random() < config.solarise_probability:
        image = solarise(image, config.solarise_threshold)
    return image


def brightness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def saturation(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def hue(image: Image.Image, shift: float) -> Image.Image:
    """As torchvision's PIL backend: the shift is cut towards zero to a step of 1/256."""
    planes = image.convert("HSV").split()
    turned = Image.fromarray(np.asarray(planes[0]) + np.uint8(int(shift * 255) % 256))
    return Image.merge("HSV", (turned, *planes[1:])).convert("RGB")


def grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def blur(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def solarise(image: Image.Image, threshold: int) -> Image.Image:
    return ImageOps.solarize(image, threshold)
