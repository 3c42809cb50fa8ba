"""Make the views of a training sample from one image: pixels and drawn colour changes.

Loader processes apply the geometry here. Colour changes are only drawn; the device applies them
later, to many views at once.

Source: ToCo (Ru et al., CVPR 2023), section 4.1, and the official ``datasets/voc.py`` and
``transforms.py``. The distributions are the same; each sample has one random generator.
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
    """Configuration of the views; the defaults are those of the official VOC and COCO recipes.

    Attributes:
        crop_size_px: Side of every view.
        rescale: Range of the factor by which the image is rescaled before the crop; (1, 1) with the
            geometry ``squash``, which has no crop.
        flip_probability: Probability of a mirrored view.
        view_geometry: ``aligned``: first view, valid box and crop source are mirrored together.
            ``official``: first view and crop source are mirrored independently, and the box is
            never mirrored. Half of the samples then have local crops at mirrored positions and, if
            padded, ignore the wrong side. ``squash``: as ``aligned``, but first view and crop
            source are the whole image, resized to the square without its aspect ratio, as in the
            official RCA; every pixel is valid.
        first_view: Colour changes of the first global view, the input of classifier and decoder.
        second_view: Colour changes of the second global view.
        second_view_area: Range of the fraction of the original image that the second view shows.
        second_view_aspect: Range of the width / height of this part.
    """

    crop_size_px: int = Field(default=448, gt=0)
    rescale: tuple[float, float] = (0.5, 2.0)
    flip_probability: Probability = 0.5
    view_geometry: Literal["aligned", "official", "squash"] = "aligned"
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
        if self.view_geometry == "squash" and self.rescale != (1.0, 1.0):
            raise ValueError(
                "rescale: the geometry squash shows the whole image, whatever its scale; expected "
                f"[1.0, 1.0], got {self.rescale}; set views.rescale=[1.0,1.0]"
            )
        return self


@dataclass(frozen=True, slots=True)
class Views:
    """Views of one training sample, with the names of ``toco.tensors.Batch``.

    Attributes:
        images: First global view: the crop, before its colour changes.
        second_view: Second global view: another crop, of the image before rescaling, before its
            colour changes; ``None`` if unused.
        crop_source: The crop, whose colours do not change; ``None`` if unused.
        valid_box: Rows ``y0 y1`` and columns ``x0 x1`` (half-open) of the crop that show the image
            and not padding.
        first_colour: Colour changes of the first view.
        second_colour: Colour changes of the second view; ``None`` without this view.
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

    All random numbers are drawn from ``rng`` in a fixed order, so that a view does not depend on
    the choice of other views.
    """
    # Rescale and crop, or squash.
    original = Image.fromarray(image)
    size = config.crop_size_px

    def flips() -> bool:
        return bool(rng.random() < config.flip_probability)

    if config.view_geometry == "squash":
        crop, box = squash(original, size), (0, size, 0, size)
    else:
        scaled = rescale(original, rng.uniform(*config.rescale))
        if config.view_geometry == "official" and flips():
            # The official code mirrors the image here, where the box remains correct, and again
            # each view, where it does not.
            scaled = mirror(scaled)
        offsets = _draw_offsets(scaled.height, scaled.width, size, rng)
        crop, box = padded_crop(scaled, size, *offsets)

    # Mirror first view, crop source and box.
    if config.view_geometry == "official":
        first, source = (mirror(crop) if flips() else crop for _ in range(2))
    elif flips():
        first = source = mirror(crop)
        y0, y1, x0, x1 = box
        box = (y0, y1, size - x1, size - x0)
    else:
        first = source = crop
    first_colour = draw_colour(rng, config.first_view)

    # The second view is drawn last, so that no other view depends on it.
    second, second_colour = None, None
    if "second_view" in extra_views:
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
    # "RGB;L" packs each line as three lines, one per colour: PIL's fastest way to separate them.
    lines = np.frombuffer(image.tobytes("raw", "RGB;L"), dtype=np.uint8)
    return lines.reshape(image.height, 3, image.width).transpose(1, 0, 2)


def rescale(image: Image.Image, factor: float) -> Image.Image:
    """Resize each side to ``int(factor * side)``, at least 1 px (bilinear, antialiased)."""
    width, height = (max(1, int(factor * side)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def squash(image: Image.Image, size: int) -> Image.Image:
    """Resize to a square of ``size`` px a side, aspect ratio lost (bilinear, antialiased).

    Source: the official RCA, whose ``transforms.Resize((368, 368))`` of torchvision is this on PIL
    images.
    """
    return image.resize((size, size), Image.Resampling.BILINEAR)


def padded_crop(
    image: Image.Image, size: int, pad_top: int, pad_left: int, top: int, left: int
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Pad the image with black to at least ``size`` per side, and crop a square.

    Args:
        image: The image.
        size: Side of the square.
        pad_top: Row of the canvas where the image begins.
        pad_left: Column of the canvas where the image begins.
        top: First row of the square on the canvas.
        left: First column of the square on the canvas.

    Returns:
        The square, and its rows ``y0 y1`` and columns ``x0 x1`` (half-open) that show the image.
    """
    # One crop does both steps: PIL fills the part beyond the image with black.
    y, x = top - pad_top, left - pad_left
    crop = image.crop((x, y, x + size, y + size))
    return crop, (max(-y, 0), min(image.height - y, size), max(-x, 0), min(image.width - x, size))


def resized_crop(image: Image.Image, part: tuple[int, int, int, int], size: int) -> Image.Image:
    """Crop ``part`` (top, left, height, width) and resize it to a square (bicubic, antialiased)."""
    top, left, height, width = part
    cut = image.crop((left, top, left + width, top + height))
    return cut.resize((size, size), Image.Resampling.BICUBIC)


def _draw_offsets(
    height: int, width: int, size: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw ``pad_top pad_left top left``: random padding if smaller, random crop if larger."""
    pad_top, pad_left = (int(rng.integers(max(size - side, 0) + 1)) for side in (height, width))
    top, left = (int(rng.integers(max(side - size, 0) + 1)) for side in (height, width))
    return pad_top, pad_left, top, left


def _draw_part(
    height: int, width: int, rng: np.random.Generator, config: ViewsConfig
) -> tuple[int, int, int, int]:
    """Draw a part of random area and aspect, as torchvision's ``RandomResizedCrop``.

    Returns top, left, height and width.
    """
    low, high = config.second_view_aspect
    for _ in range(_CROP_ATTEMPTS):
        area = height * width * rng.uniform(*config.second_view_area)
        aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    # For a long image few parts fit: take the largest central part of an allowed aspect.
    aspect = min(max(width / height, low), high)
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (height - h) // 2, (width - w) // 2, h, w
