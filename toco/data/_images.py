"""Decode images and index masks; refuse what would be silently misread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from toco.types import IGNORE_INDEX

FORMATS = ("JPEG", "PNG")
"""Only these decoders of PIL are ever started, whatever a file's name says."""
_CONVERTIBLE = ("RGB", "L", "LA", "P", "RGBA", "CMYK")
_MASK_MODES = ("L", "P")


def read_image(path: Path, max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image as RGB, pixels as they are stored: an EXIF orientation is ignored.

    VOC's masks lie on the stored pixels, so turning the image would move it away from its mask. Grey, palette, alpha
    and CMYK images are converted; 16-bit ones are refused, since PIL would wrap or clip them.

    Raises:
        ValueError: The file is missing, truncated, no JPEG or PNG, too large, or of a mode that has no 8-bit RGB form.
    """
    image = _decode(path, max_pixels)
    if image.mode not in _CONVERTIBLE:
        raise ValueError(f"{path}: expected an 8-bit RGB image, but its mode is {image.mode}; convert it.")
    return _frozen(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))


def read_mask(path: Path, num_foreground_classes: int, max_pixels: int) -> UInt8[np.ndarray, "h w"]:
    """Decode a mask of class ids: a palette image's indices, or a grey image's levels.

    Raises:
        ValueError: The file is missing or broken, holds colours instead of ids, or has ids beyond 0..k and 255.
    """
    image = _decode(path, max_pixels)
    if image.mode not in _MASK_MODES:
        raise ValueError(
            f"{path}: expected a mask of class ids (8-bit grey or palette), but its mode is {image.mode}; "
            "a mask drawn in colours has to be converted to ids first."
        )
    mask = np.asarray(image)
    out_of_range = ids_out_of_range(mask, num_foreground_classes)
    if out_of_range:
        raise ValueError(
            f"{path}: expected ids 0..{num_foreground_classes} and {IGNORE_INDEX}, "
            f"but it also has {', '.join(map(str, out_of_range))}; check the class list."
        )
    return _frozen(mask)


def ids_out_of_range(mask: UInt8[np.ndarray, "h w"], num_foreground_classes: int) -> list[int]:
    """Ids in ``mask`` that are neither 0..k nor void."""
    return [i for i in ids_in(mask) if i > num_foreground_classes and i != IGNORE_INDEX]


def ids_in(mask: UInt8[np.ndarray, "h w"]) -> list[int]:
    """All ids in ``mask``, ascending (a count is several times faster than a sort of the pixels)."""
    return np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()


def open_checked(path: Path, max_pixels: int) -> Image.Image:
    """Open a file's header: format and size are known, no pixel is decoded yet.

    Raises:
        ValueError: The file is missing, no JPEG or PNG, or has more than ``max_pixels`` pixels.
    """
    try:
        image = Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file.") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: cannot be read as {' or '.join(FORMATS)}, whatever its name says.") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: expected at most {max_pixels} pixels ({error}).") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as {' or '.join(FORMATS)} ({error}).") from error
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise ValueError(f"{path}: expected at most {max_pixels} pixels, but it has {width} x {height}.")
    return image


def _decode(path: Path, max_pixels: int) -> Image.Image:
    with open_checked(path, max_pixels) as image:
        try:
            image.load()
        # PIL reports a broken file by any of these, depending on the decoder.
        except (OSError, SyntaxError, ValueError, IndexError, EOFError) as error:
            raise ValueError(f"{path}: cannot be decoded ({error}); the file is truncated or damaged.") from error
        return image


def _frozen(array: UInt8[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    array.setflags(write=False)
    return array
