"""From one image to the views of a training sample: their pixels, and how their colours are to change.

Geometry is done here, in the loader's processes; colours are only drawn, and changed later, many
views at once.

Source: ToCo (Ru et al., CVPR 2023), section 4.1, and the official ``datasets/voc.py`` and
``transforms.py``: what they draw is drawn here from the same distributions, by one generator a
sample.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image
from PIL.ImageOps import mirror
from pydantic import Field, model_validator

from toco.config import Config
from toco.data.views.colour import Colour, ColourConfig, Probability, draw_colour
from toco.types import ExtraView

EXTRA_VIEWS: frozenset[ExtraView] = frozenset(get_args(ExtraView))
_CROP_ATTEMPTS = 10  # as torchvision's RandomResizedCrop, before it falls back to a central crop


class ViewsConfig(Config):
    """How views are made; the defaults are those of the official VOC and COCO recipes.

    Attributes:
        crop_size_px: Side of every view.
        rescale: Range of the factor by which the image is rescaled before the crop.
        flip_probability: Chance of a mirrored view.
        view_geometry: ``aligned``: first view, valid box and crop source are mirrored together.
            ``official``: first view and crop source are mirrored independently and the box never,
            so that in half of the samples the local crops are cut at mirrored positions and, if
            padded, the wrong side is ignored.
        first_view: Colours of the first global view, which the classifier and the decoder see.
        second_view: Colours of the second global view.
        second_view_area: Range of the part of the original image that the second view shows.
        second_view_aspect: Range of that part's width / height.
    """

    crop_size_px: int = Field(default=448, gt=0)
    rescale: tuple[float, float] = (0.5, 2.0)
    flip_probability: Probability = 0.5
    view_geometry: Literal["aligned", "official"] = "aligned"
    first_view: ColourConfig = ColourConfig()
    second_view: ColourConfig = ColourConfig(blur_probability=0.1, solarise_probability=0.2)
    second_view_area: tuple[float, float] = (0.4, 1.0)
    second_view_aspect: tuple[float, float] = (3 / 4, 4 / 3)

    @model_validator(mode="after")
    def _ordered(self) -> ViewsConfig:
        for name in ("rescale", "second_view_area", "second_view_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: expected 0 < low <= high, got {(low, high)}")
        if self.second_view_area[1] > 1:
            raise ValueError(f"second_view_area: expected at most 1, got {self.second_view_area}")
        return self


@dataclass(frozen=True, slots=True)
class Views:
    """One training sample; the names are those of ``toco.tensors.Batch``.

    Attributes:
        images: First global view: the crop, its colours not changed yet.
        second_view: Second global view: another crop, of the image before rescaling; its colours
            not changed yet. ``None`` where it is not used.
        crop_source: The crop with its own colours, or ``None``.
        valid_box: Rows ``y0 y1`` and columns ``x0 x1`` (half-open) of the crop that are image and
            not padding.
        first_colour: How the colours of the first view are to change.
        second_colour: How the colours of the second view are to change, if there is one.
    """

    images: UInt8[np.ndarray, "3 s s"]
    second_view: UInt8[np.ndarray, "3 s s"] | None
    crop_source: UInt8[np.ndarray, "3 s s"] | None
    valid_box: Int64[np.ndarray, " 4"]
    first_colour: Colour
    second_colour: Colour | None


def make_views(
    image: UInt8[np.ndarray, "h w 3"],
    rng: np.random.Generator,
    config: ViewsConfig,
    extra_views: Collection[ExtraView] = EXTRA_VIEWS,
) -> Views:
    """Draw the first view of one image, and those of ``extra_views``.

    All randomness comes from ``rng``, in a fixed order, so that a view does not depend on which
    others are made.
    """
    original = Image.fromarray(image)
    size = config.crop_size_px

    def flips() -> bool:
        return bool(rng.random() < config.flip_probability)

    scaled = rescale(original, rng.uniform(*config.rescale))
    if config.view_geometry == "official" and flips():
        # The official code mirrors the whole image here and every view once more; the box is right
        # up to here.
        scaled = mirror(scaled)
    crop, box = padded_crop(scaled, size, *_draw_offsets(scaled.height, scaled.width, size, rng))
    if config.view_geometry == "official":
        first, source = (mirror(crop) if flips() else crop for _ in range(2))
    elif flips():
        first = source = mirror(crop)
        y0, y1, x0, x1 = box
        box = (y0, y1, size - x1, size - x0)
    else:
        first = source = crop
    first_colour = draw_colour(rng, config.first_view)

    second, second_colour = None, None
    if "second_view" in extra_views:  # drawn last, so that nothing else depends on it
        second = resized_crop(
            original, _draw_part(original.height, original.width, rng, config), size
        )
        if flips():
            second = mirror(second)
        second_colour = draw_colour(rng, config.second_view)
    return Views(
        images=_planes(first),
        second_view=None if second is None else _planes(second),
        crop_source=_planes(source) if "crop_source" in extra_views else None,
        valid_box=np.array(box, dtype=np.int64),
        first_colour=first_colour,
        second_colour=second_colour,
    )


def _planes(image: Image.Image) -> UInt8[np.ndarray, "3 h w"]:
    # Packed line by line in three colours, which is the fastest way that PIL has of taking them
    # apart.
    lines = np.frombuffer(image.tobytes("raw", "RGB;L"), dtype=np.uint8)
    return lines.reshape(image.height, 3, image.width).transpose(1, 0, 2)


def rescale(image: Image.Image, factor: float) -> Image.Image:
    """Resize to ``int(factor * side)`` (bilinear, antialiased), at least 1 px."""
    width, height = (max(1, int(factor * side)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def padded_crop(
    image: Image.Image, size: int, pad_top: int, pad_left: int, top: int, left: int
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Put the image on a black canvas of at least ``size`` a side and cut a square out of it.

    Args:
        image: The image.
        size: Side of the square.
        pad_top: Row of the canvas where the image begins.
        pad_left: Column of the canvas where the image begins.
        top: First row of the square on the canvas.
        left: First column of the square on the canvas.

    Returns:
        The square, and the rows ``y0 y1`` and columns ``x0 x1`` of it that show the image.
    """
    # Both steps in one: a crop that reaches beyond the image is black there.
    y, x = top - pad_top, left - pad_left
    crop = image.crop((x, y, x + size, y + size))
    return crop, (max(-y, 0), min(image.height - y, size), max(-x, 0), min(image.width - x, size))


def resized_crop(image: Image.Image, part: tuple[int, int, int, int], size: int) -> Image.Image:
    """Cut ``part`` (top, left, height, width) out and resize it to a square (bicubic, antialiased)."""
    top, left, height, width = part
    cut = image.crop((left, top, left + width, top + height))
    return cut.resize((size, size), Image.Resampling.BICUBIC)


def _draw_offsets(
    height: int, width: int, size: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """``pad_top pad_left top left``: a smaller side lies anywhere on the canvas, a larger one is cut anywhere."""
    pad_top, pad_left = (int(rng.integers(max(size - side, 0) + 1)) for side in (height, width))
    top, left = (int(rng.integers(max(side - size, 0) + 1)) for side in (height, width))
    return pad_top, pad_left, top, left


def _draw_part(
    height: int, width: int, rng: np.random.Generator, config: ViewsConfig
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part with random area and aspect, as torchvision's ``RandomResizedCrop``."""
    low, high = config.second_view_aspect
    for _ in range(_CROP_ATTEMPTS):
        area = height * width * rng.uniform(*config.second_view_area)
        aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    # The image is so long that few parts fit: the largest central one with an allowed aspect.
    aspect = min(max(width / height, low), high)
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (height - h) // 2, (width - w) // 2, h, w
