"""Decode images and index masks; refuse files that would be misread silently.

An image may have an EXIF orientation, as photographs of phones do. Images of a data set are read
with their pixels as stored, because masks refer to the stored pixels (:func:`read_image`). Images
outside of a data set are rotated upright (:func:`read_upright`): in ``predict``, in the demo and in
the registered model.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from toco.files import printable
from toco.types import IGNORE_INDEX

# Each reader checks its own pixel limit before it decodes. PIL's limit would refuse images that the
# setting allows.
Image.MAX_IMAGE_PIXELS = None

MAX_PIXELS = 50_000_000
"""Default limit on an image's pixels: a hundred times the largest image of VOC or COCO."""
FORMATS = ("JPEG", "PNG")
"""Decoders of PIL that may run, whatever the suffix of a file is."""
Levels = tuple[int, int]
"""Grey levels that become 0 and 255 in an image of more than 8 bits."""
_EXIF_ORIENTATION, _UPRIGHT, _LAST_ORIENTATION = 0x0112, 1, 8  # tag, first and last value
_DEEP = ("I;16", "I;16B", "I;16L", "I")  # PIL's modes of grey images of more than 8 bits
_CONVERTIBLE = ("RGB", "L", "LA", "P", "RGBA", "CMYK")
_MASK_MODES = ("L", "P")
_MASK_FORMATS = ("PNG",)
"""JPEG compression would change ids."""


def read_image(
    path: Path, max_pixels: int, formats: tuple[str, ...] = FORMATS, levels: Levels | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image as RGB with its pixels as stored.

    The EXIF orientation is ignored, except for TIFF: VOC's masks refer to the stored pixels, so a
    rotated image would no longer match its mask. Grey, palette and CMYK images are converted; alpha
    is dropped. Grey images of more than 8 bits need ``levels``, because PIL would wrap or clip
    them. A level v becomes 255 (v - low) / (high - low), rounded to even and clipped to 0..255.

    Raises:
        ValueError: The file is missing, truncated, of another format, too large, has several pages,
            has a mode without an 8-bit RGB form, or has colours of 16 bits, of which PIL would drop
            the lower 8.
    """
    image, raw_mode = _decode(path, max_pixels, formats)
    if image.mode in _DEEP and levels is not None:
        low, high = levels
        scaled = (np.asarray(image).astype(np.float64) - low) * 255 / (high - low)
        grey = np.rint(scaled.clip(0, 255)).astype(np.uint8)
        return _frozen(np.repeat(grey[..., None], 3, axis=2))
    if image.mode in _DEEP:
        raise ValueError(
            f"{path}: expected an 8-bit image, but its mode is {image.mode} (16 bits or more); "
            "convert it, or read it as data.name=folder with data.levels=[low,high], the levels "
            "that become black and white."
        )
    return _rgb(image, raw_mode, str(path))


def read_upright(
    path: Path, max_pixels: int, content: bytes | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image outside of a data set as RGB, rotated by its EXIF orientation.

    Args:
        path: The file.
        max_pixels: Most pixels; larger images are refused before they are decoded.
        content: Bytes of an uploaded image, instead of the file; ``path`` is then only its name in
            messages.

    Raises:
        ValueError: As in :func:`read_image`, or the EXIF data is damaged.
    """
    image, raw_mode = _decode(
        path, max_pixels, FORMATS, None if content is None else BytesIO(content)
    )
    try:
        upright = ImageOps.exif_transpose(image)
    # exif_transpose writes the EXIF data again, and fails on invalid data in many ways.
    except (OSError, SyntaxError, ValueError, TypeError, struct.error) as error:
        raise ValueError(
            f"{printable(path)}: its EXIF data is damaged ({error}); save it without."
        ) from error
    return _rgb(upright, raw_mode, str(path))


@dataclass(frozen=True, slots=True)
class Header:
    """Properties of an image that are known before its pixels are decoded.

    Attributes:
        mode: PIL's mode, such as ``RGB`` or ``L``.
        orientation: EXIF orientation that reading ignores, 1 to 8. It is 1 (upright) without a
            valid tag, and for TIFF, which PIL rotates.
    """

    mode: str
    orientation: int


def read_header(path: Path, max_pixels: int, formats: tuple[str, ...] = FORMATS) -> Header:
    """Read the header of an image.

    Raises:
        ValueError: The file is missing, of another format, or too large.
    """
    with open_checked(path, max_pixels, formats) as image:
        if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
            return Header(image.mode, _UPRIGHT)  # getexif would decode the whole PNG
        try:
            value = image.getexif().get(_EXIF_ORIENTATION, _UPRIGHT)
        except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
            value = _UPRIGHT
        is_valid = isinstance(value, int) and _UPRIGHT <= value <= _LAST_ORIENTATION
        return Header(image.mode, value if is_valid else _UPRIGHT)


def read_mask(path: Path, num_foreground_classes: int, max_pixels: int) -> UInt8[np.ndarray, "h w"]:
    """Decode a mask of class ids: indices of a palette image, or levels of an 8-bit grey image.

    Raises:
        ValueError: The file is missing, damaged or no PNG, has colours or scaled levels instead of
            ids, or has ids beyond 0..k and 255.
    """
    mask = read_ids(path, max_pixels)
    if out_of_range := [
        i for i in ids_in(mask) if i > num_foreground_classes and i != IGNORE_INDEX
    ]:
        raise ValueError(
            f"{path}: expected ids 0..{num_foreground_classes} and {IGNORE_INDEX}, "
            f"but it also has {', '.join(map(str, out_of_range))}; check the class list."
        )
    return mask


def read_ids(path: Path, max_pixels: int) -> UInt8[np.ndarray, "h w"]:
    """Decode a mask with any ids.

    Raises:
        ValueError: The file is missing, damaged or no PNG, or has colours or scaled levels instead
            of ids.
    """
    image, raw_mode = _decode(path, max_pixels, _MASK_FORMATS)
    if image.mode not in _MASK_MODES:
        raise ValueError(
            f"{path}: expected a mask of class ids (8-bit grey or palette), but its mode is "
            f"{image.mode}; "
            + (
                "save it with 8 bits."
                if image.mode == "1"
                else "a mask drawn in colours has to be converted to ids first."
            )
        )
    if image.mode == "L" and raw_mode != "L":
        # PIL scales levels of fewer bits: the 2-bit ids 0 to 3 become 0, 85, 170 and 255, so that 3
        # would be void; the 4-bit id 1 becomes 17.
        raise ValueError(
            f"{path}: expected a mask of class ids in 8 bits, but its grey levels are stored as "
            f"{raw_mode} and scaled to 0..255 when they are read; save it with 8 bits or as a "
            "palette image."
        )
    return _frozen(np.asarray(image))


def png(
    pixels: UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"], palette: bytes | None = None
) -> bytes:
    """Encode ids, grey levels or colours as PNG; a palette adds colours to ids."""
    image, file = Image.fromarray(pixels), BytesIO()
    if palette is not None:
        image.putpalette(palette)
    image.save(file, "PNG")
    return file.getvalue()


def ids_in(mask: UInt8[np.ndarray, "h w"]) -> list[int]:
    """Return the ascending ids in ``mask``; counting is several times faster than sorting."""
    return np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()


def open_checked(
    path: Path, max_pixels: int, formats: tuple[str, ...] = FORMATS, content: BytesIO | None = None
) -> Image.Image:
    """Open an image and check format and size before any pixel is decoded.

    Args:
        path: The file.
        max_pixels: Most pixels of the image.
        formats: Accepted formats.
        content: Content instead of the file; ``path`` is then only its name in messages.

    Raises:
        ValueError: The file is missing, of another format, or has more than ``max_pixels`` pixels.
    """
    try:
        image = Image.open(path if content is None else content, formats=formats)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file.") from None
    except UnidentifiedImageError:
        raise ValueError(
            f"{path}: cannot be read as {' or '.join(formats)}, whatever its name says."
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ValueError(f"{path}: cannot be read as {' or '.join(formats)} ({reason}).") from error
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise ValueError(
            f"{path}: expected at most {max_pixels} pixels, but it has {width} x {height}."
        )
    return image


def _decode(
    path: Path, max_pixels: int, formats: tuple[str, ...], content: BytesIO | None = None
) -> tuple[Image.Image, str]:
    """Decode an image; return it with PIL's name of the stored pixel format.

    The name is the mode, or a raw mode such as ``RGB;16B``.
    """
    with open_checked(path, max_pixels, formats, content) as image:
        try:
            # Further frames of a JPEG (preview) or PNG (animation) are ignored; the pages of a TIFF
            # are images.
            pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            raw_mode = _raw_mode(image)
            image.load()
        # PIL's decoders report damaged files by any of these errors.
        except (
            OSError,
            SyntaxError,
            ValueError,
            TypeError,
            IndexError,
            EOFError,
            struct.error,
        ) as error:
            raise ValueError(
                f"{path}: cannot be decoded ({error}); the file is truncated or damaged."
            ) from error
        if pages > 1:
            raise ValueError(f"{path}: expected one image, but it has {pages} pages; split it.")
        return image, raw_mode


def _raw_mode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", ())
    arguments: object = tiles[0].args if tiles else image.mode
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _rgb(image: Image.Image, raw_mode: str, path: str) -> UInt8[np.ndarray, "h w 3"]:
    if image.mode not in _CONVERTIBLE:
        raise ValueError(
            f"{path}: expected an 8-bit RGB image, but its mode is {image.mode}; convert it."
        )
    if ";16" in raw_mode:
        raise ValueError(
            f"{path}: expected an 8-bit RGB image, but its colours are of 16 bits ({raw_mode}), of "
            "which the lower 8 would be dropped; scale and convert it."
        )
    return _frozen(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))


def _frozen(array: UInt8[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    array.setflags(write=False)
    return array
