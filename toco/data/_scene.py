"""Draw the scenes of the generated benchmark.

All arithmetic is on integers, so that every machine draws the same pixels.

The scenes contain what makes image-level supervision hard. An object has a plain *body* with a weak
tint of its class and a small *part* with the class's full colour and pattern: the part alone is
enough for a classifier. Half of the classes mostly appear on a background of their own, which a
classifier can use as evidence. Objects occlude one another.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from pydantic import Field, model_validator

from toco.config import Config

# These names, colours and the proportions in the functions below define the benchmark: to change
# one makes another data set.
CLASS_NAMES = (
    "red_oval",
    "green_box",
    "blue_kite",
    "yellow_cone",
    "purple_oval",
    "cyan_box",
    "orange_kite",
    "brown_cone",
)
_PART_COLOURS = np.array(
    [
        (216, 56, 48),
        (48, 168, 64),
        (56, 88, 224),
        (224, 200, 40),
        (192, 64, 200),
        (48, 192, 200),
        (240, 128, 32),
        (128, 80, 48),
    ],
    dtype=np.int64,
)
_BACKGROUND_COLOURS = np.array(
    [(104, 124, 96), (132, 120, 100), (100, 116, 136), (124, 124, 124)], dtype=np.int64
)
_NUM_BACKGROUNDS = len(_BACKGROUND_COLOURS)
_GREY = 128  # level of a body without tint
_PLACEMENT_ATTEMPTS = 12  # positions that are tried for an object before it is dropped
_UNIT = 256  # noise lies in [-_UNIT, _UNIT]

_Plane = Int64[np.ndarray, "h w"]
_Pixels = Int64[np.ndarray, "h w 3"]
_Region = Bool[np.ndarray, "h w"]


class SceneConfig(Config):
    """Contents of a scene. Fractions are integer percentages, since drawing uses integers only.

    Attributes:
        num_objects: Minimum and maximum number of objects that are tried. An object without a free
            place is dropped, except the first. Without an object the image shows a background.
        context_percent: If the first object has one of the first four classes: chance, in percent,
            of that class's own background.
        tint_percent: Strength of the class's colour in the body, as a percentage of its strength in
            the part.
        body_jitter: Largest random change of a body's brightness, in levels of 255.
        hidden_part_percent: Percentage of objects without their part.
        num_decoys: Minimum and maximum number of decoys that are tried. A decoy belongs to the
            background. It has the colours of an object in the image (without one, of any class),
            but the outline and the pattern of other classes.
    """

    num_objects: tuple[int, int] = (1, 3)
    context_percent: int = Field(default=80, ge=0, le=100)
    tint_percent: int = Field(default=31, ge=0, le=100)
    body_jitter: int = Field(default=30, ge=0, le=100)
    hidden_part_percent: int = Field(default=0, ge=0, le=100)
    num_decoys: tuple[int, int] = (0, 0)

    @model_validator(mode="after")
    def _ordered(self) -> SceneConfig:
        for name, (low, high) in (
            ("num_objects", self.num_objects),
            ("num_decoys", self.num_decoys),
        ):
            if not 0 <= low <= high:
                raise ValueError(f"{name}: expected 0 <= least <= most, got {(low, high)}")
        return self


class Scene(NamedTuple):
    """Image and its mask (0 background, 1..k)."""

    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]


def draw_scene(key: tuple[int, ...], size_px: int, num_classes: int, config: SceneConfig) -> Scene:
    """Draw one scene.

    Args:
        key: Integers in [0, 2^32) that identify the scene, such as seed, split and index.
        size_px: Side of the square image, at least 32.
        num_classes: The classes are the first ``num_classes`` of ``CLASS_NAMES``.
        config: Contents of the scene.
    """
    # numpy guarantees the random stream of RandomState for all versions, but not of Generator.
    random = np.random.RandomState(list(key))
    classes = [
        _between(random, 0, num_classes - 1) for _ in range(_between(random, *config.num_objects))
    ]
    background = _between(random, 0, _NUM_BACKGROUNDS - 1)
    if classes and classes[0] < _NUM_BACKGROUNDS and _chance(random, config.context_percent):
        background = classes[0]
    image = _draw_background(random, size_px, background)
    mask = np.zeros((size_px, size_px), dtype=np.uint8)
    parts = np.zeros((size_px, size_px), dtype=bool)
    for label, class_index in enumerate(classes):
        place = _free_place(random, class_index, mask, parts, anywhere=label == 0)
        if place is None:
            continue
        body, part = place
        image[body] = _body_pixels(random, size_px, class_index, config)[body]
        mask[body] = class_index + 1
        if not _chance(random, config.hidden_part_percent):
            image[part] = _part_pixels(size_px, class_index, class_index)[part]
            parts |= part
    for _ in range(_between(random, *config.num_decoys)):
        colours = classes or range(num_classes)
        colour = colours[_between(random, 0, len(colours) - 1)]
        # One or three further: another outline (class modulo 4) and the other pattern (modulo 2).
        shape = colour + 1 + 2 * _between(random, 0, 1)
        place = _free_place(random, shape, mask, parts, anywhere=False)
        if place is None:
            continue
        body, part = place
        image[body] = _body_pixels(random, size_px, colour, config)[body]
        image[part] = _part_pixels(size_px, colour, shape)[part]
        mask[body] = 0
        parts |= part
    return Scene(np.clip(image, 0, 255).astype(np.uint8), mask)


def _free_place(
    random: np.random.RandomState,
    shape: int,
    mask: UInt8[np.ndarray, "h w"],
    parts: _Region,
    *,
    anywhere: bool,
) -> tuple[_Region, _Region] | None:
    """Find a place for a body and its part; ``None`` if no attempt found one.

    A body may occlude objects, but no part, and at most a third of the body may cover objects.
    """
    for _ in range(_PLACEMENT_ATTEMPTS):
        body, part = _place(random, len(mask), shape)
        covers = np.count_nonzero(body & (mask > 0))
        if anywhere or (3 * covers <= np.count_nonzero(body) and not (body & parts).any()):
            return body, part
    return None


def _between(random: np.random.RandomState, low: int, high: int) -> int:
    return int(random.randint(low, high + 1, dtype=np.int64))


def _chance(random: np.random.RandomState, percent: int) -> bool:
    return _between(random, 0, 99) < percent


def _noise(random: np.random.RandomState, size_px: int, cell_px: int) -> _Plane:
    """Draw random values on a grid of cells and interpolate bilinearly."""
    knots = size_px // cell_px + 2
    grid = random.randint(-_UNIT, _UNIT + 1, (knots, knots), dtype=np.int64)
    for _ in range(2):
        at = np.arange(size_px) + _between(random, 0, cell_px - 1)
        cell, within = at // cell_px, (at % cell_px)[:, None]
        grid = (grid[cell] * (cell_px - within) + grid[cell + 1] * within).T
    plane: _Plane = grid // cell_px**2
    return plane


def _draw_background(random: np.random.RandomState, size_px: int, kind: int) -> _Pixels:
    """Draw waves, diagonals, blotches or checks, with uneven light and grain."""
    y, x = np.mgrid[:size_px, :size_px]
    phase = _between(random, 0, 15)
    if kind == 0:
        bright = (y + phase + _noise(random, size_px, 16) // 64) // 3 % 2 == 0
    elif kind == 1:
        bright = (x + y + phase) // 4 % 2 == 0
    elif kind == 2:
        bright = _noise(random, size_px, 4) > 0
    else:
        bright = ((x + phase) // 4 + (y + phase) // 4) % 2 == 0
    contrast = _between(random, 24, 48)
    light, grain = _noise(random, size_px, 16) * 40, _noise(random, size_px, 2) * 24
    plane = np.where(bright, contrast, -contrast) + (light + grain) // _UNIT
    colour = _BACKGROUND_COLOURS[kind] + random.randint(-16, 17, 3, dtype=np.int64)
    pixels: _Pixels = colour + plane[..., None]
    return pixels


def _place(
    random: np.random.RandomState, size_px: int, class_index: int
) -> tuple[_Region, _Region]:
    """Draw the regions of a body and its part, with both centres inside the image."""
    half_height, half_width = (
        _between(random, 3 * size_px // 16, 17 * size_px // 64) for _ in range(2)
    )
    centre_y, centre_x = (
        _between(random, size_px // 8, size_px - size_px // 8 - 1) for _ in range(2)
    )
    y, x = np.mgrid[:size_px, :size_px]
    dy, dx = y - centre_y, x - centre_x
    outline = class_index % 4
    if outline == 0:
        body = dy**2 * half_width**2 + dx**2 * half_height**2 <= half_height**2 * half_width**2
    elif outline == 1:
        body = (8 * abs(dy) <= 7 * half_height) & (8 * abs(dx) <= 7 * half_width)
    elif outline == 2:
        body = 4 * (abs(dy) * half_width + abs(dx) * half_height) <= 5 * half_height * half_width
    else:
        body = (abs(dy) <= half_height) & (
            2 * half_height * abs(dx) <= half_width * (dy + half_height + 2)
        )
    radius = _between(random, size_px // 16, 3 * size_px // 32)
    margin = size_px // 32
    part_y = _inside(
        centre_y + _between(random, -(half_height // 2), half_height // 2), margin, size_px
    )
    part_x = _inside(
        centre_x + _between(random, -(half_width // 2), half_width // 2), margin, size_px
    )
    return body, body & ((y - part_y) ** 2 + (x - part_x) ** 2 <= radius**2)


def _inside(value: int, margin: int, size_px: int) -> int:
    return min(max(value, margin), size_px - 1 - margin)


def _body_pixels(
    random: np.random.RandomState, size_px: int, class_index: int, config: SceneConfig
) -> _Pixels:
    """Draw the nearly plain pixels of a body.

    Brightness and hue vary between objects about as much as between classes.
    """
    colour = _PART_COLOURS[class_index]
    tint = (colour - colour.sum() // 3) * config.tint_percent // 100
    brightness = _between(random, -config.body_jitter, config.body_jitter)
    hue = random.randint(-config.body_jitter, config.body_jitter + 1, 3, dtype=np.int64) // 3
    shade = _noise(random, size_px, 8) * 10 // _UNIT
    pixels: _Pixels = _GREY + tint + brightness + hue + shade[..., None]
    return pixels


def _part_pixels(size_px: int, colour_of: int, pattern_of: int) -> _Pixels:
    """Draw a part in a class's colour: stripes for even classes of the pattern, else checks."""
    y, x = np.mgrid[:size_px, :size_px]
    bright = (x // 2 + y // 2) % 2 == 0 if pattern_of % 2 else y // 2 % 2 == 0
    colour = _PART_COLOURS[colour_of]
    pixels: _Pixels = np.where(bright[..., None], colour, colour // 3)
    return pixels
