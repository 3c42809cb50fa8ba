"""Paint classes over an image, with a legend below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from toco.evaluate.pictures import voc_palette
from toco.files import printable

_OPACITY = 0.6  # weight of the colour in a painted pixel; the image remains visible
_FONT = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


def overlay(
    image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], class_names: Sequence[str]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Paint the classes in VOC's colours over the image, with a legend of their names below.

    At pixels of a class ``result[:h, :w]`` mixes colour (weight ``_OPACITY``) and image; at the
    background it is the image. An image narrower than its legend is padded with white on the right.

    Args:
        image: RGB levels.
        label: 0 is the background, 1 to ``len(class_names)`` are classes.
        class_names: Foreground classes; ``class_names[j]`` has the label ``j + 1``.
    """
    colour = voc_palette()[label]
    mixed = (
        np.where(label[..., None] > 0, _OPACITY * colour + (1 - _OPACITY) * image, image)
        .round()
        .astype(np.uint8)
    )
    legend = _legend([int(i) for i in np.unique(label) if i], class_names, image.shape[1])
    width = max(image.shape[1], legend.shape[1])
    return np.concatenate([_widened(mixed, width), _widened(legend, width)])


def _legend(
    ids: Sequence[int], class_names: Sequence[str], image_width: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw an entry, a colour patch and a name, for each class; a row holds as many as fit.

    A row is at most as wide as the image, or as its only entry. Without any class the legend has
    the entry "background".
    """
    # Font size in px: in proportion to the image, but readable and not huge. Gaps and rows are in
    # proportion to the font.
    size = min(max(image_width // 32, 12), 48)
    font = ImageFont.truetype(_FONT, size)
    entries = [(voc_palette()[i], printable(class_names[i - 1])) for i in ids]
    if not entries:
        entries = [(voc_palette()[0], "background")]
    gap, row_height = size // 3, round(1.5 * size)
    places, x, row = [], 0, 0
    for _, name in entries:
        width = size + round(font.getlength(name)) + 3 * gap
        if x and x + width > image_width:
            x, row = 0, row + 1
        places.append((x, row * row_height, width))
        x += width
    total = max(x + width for x, _, width in places), (row + 1) * row_height
    canvas = Image.new("RGB", total, "white")
    draw = ImageDraw.Draw(canvas)
    for (colour, name), (x, y, _) in zip(entries, places, strict=True):
        top = y + (row_height - size) // 2
        draw.rectangle(
            (x + gap, top, x + gap + size - 1, top + size - 1), fill=tuple(colour.tolist())
        )
        draw.text(
            (x + 2 * gap + size, y + row_height // 2), name, fill="black", font=font, anchor="lm"
        )
    return np.asarray(canvas)


def _widened(image: UInt8[np.ndarray, "h w 3"], width: int) -> UInt8[np.ndarray, "h w2 3"]:
    return np.pad(image, ((0, 0), (0, width - image.shape[1]), (0, 0)), constant_values=255)
