"""Decode images and index masks; refuse what would be silently misread.

An image may carry an EXIF orientation, as photographs of phones do. The rule: the images of a data
set are read as their pixels are stored, because its masks lie on the stored pixels
(:func:`read_image`). Image files that belong to no data set are turned upright
(:func:`read_upright`): ``predict`` and the demo read them so, and so does the registered model.
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

# Every image is held against a limit of pixels of its reader before it is decoded. A second limit,
# PIL's own, would refuse what the setting allows, and warn below that.
Image.MAX_IMAGE_PIXELS = None

MAX_PIXELS = 50_000_000
"""Default cap on an image's pixels: a hundred times the largest image of VOC or COCO."""
FORMATS = ("JPEG", "PNG")
"""Only these decoders of PIL are ever started, whatever a file's name says."""
Levels = tuple[int, int]
"""Levels of a grey image of more than 8 bits that become 0 and 255."""
_EXIF_ORIENTATION, _UPRIGHT, _LAST_ORIENTATION = 0x0112, 1, 8
_DEEP = ("I;16", "I;16B", "I;16L", "I")
_CONVERTIBLE = ("RGB", "L", "LA", "P", "RGBA", "CMYK")
_MASK_MODES = ("L", "P")
_MASK_FORMATS = ("PNG",)
"""JPEG would blur ids into others."""


def read_image(
    path: Path, max_pixels: int, formats: tuple[str, ...] = FORMATS, levels: Levels | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image as RGB, pixels as they are stored: an EXIF orientation is ignored, but for that of a TIFF.

    VOC's masks lie on the stored pixels, so turning the image would move it away from its mask.
    Grey, palette, alpha (which is dropped) and CMYK images are converted. Grey images of more than
    8 bits need ``levels``: PIL would wrap or clip them. A level v becomes 255 (v - low) / (high -
    low), rounded to even and clipped to 0..255.

    Raises:
        ValueError: The file is missing, truncated, of another format, too large, of several pages,
            of a mode that has no 8-bit RGB form, or in colours of 16 bits, of which PIL would drop
            the lower 8.
    """
    image, stored = _decode(path, max_pixels, formats)
    if image.mode in _DEEP and levels is not None:
        low, high = levels
        scaled = (np.asarray(image).astype(np.float64) - low) * 255 / (high - low)
        grey = np.rint(scaled.clip(0, 255)).astype(np.uint8)
        return _frozen(np.repeat(grey[..., None], 3, axis=2))
    if image.mode in _DEEP:
        raise ValueError(
            f"{path}: expected an 8-bit image, but its mode is {image.mode} (16 bits or more); convert it, or read it "
            "as data.name=folder with data.levels=[low,high], the levels that become black and white."
        )
    return _rgb(image, stored, str(path))


def read_upright(
    path: Path, max_pixels: int, content: bytes | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode what belongs to no data set as RGB, turned by its EXIF orientation.

    Args:
        path: The file.
        max_pixels: Larger images are refused before they are decoded.
        content: What somebody sent, in place of the file; ``path`` is then only what messages call
            it.

    Raises:
        ValueError: As in :func:`read_image`, or the EXIF data is damaged.
    """
    image, stored = _decode(
        path, max_pixels, FORMATS, None if content is None else BytesIO(content)
    )
    try:
        upright = ImageOps.exif_transpose(image)
    # It writes the EXIF data anew, which may hold anything.
    except (OSError, SyntaxError, ValueError, TypeError, struct.error) as error:
        raise ValueError(
            f"{printable(path)}: its EXIF data is damaged ({error}); save it without."
        ) from error
    return _rgb(upright, stored, str(path))


@dataclass(frozen=True, slots=True)
class Header:
    """What an image's file says of it before a pixel is decoded.

    Attributes:
        mode: As PIL names it, ``RGB`` or ``L`` for example.
        orientation: EXIF orientation, 1 to 8, that is ignored; 1 is upright, as are images that say
            nothing or nothing readable. PIL turns a TIFF as its tag says, so that nothing of it is
            ignored.
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
            return Header(image.mode, _UPRIGHT)  # all of a PNG would be decoded to look for it
        try:
            value = image.getexif().get(_EXIF_ORIENTATION, _UPRIGHT)
        except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
            value = _UPRIGHT
        known = isinstance(value, int) and _UPRIGHT <= value <= _LAST_ORIENTATION
        return Header(image.mode, value if known else _UPRIGHT)


def read_mask(path: Path, num_foreground_classes: int, max_pixels: int) -> UInt8[np.ndarray, "h w"]:
    """Decode a mask of class ids: a palette image's indices, or the levels of a grey image of 8 bits.

    Raises:
        ValueError: The file is missing, broken or no PNG, holds colours or scaled levels instead of
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
    """Decode a mask whatever its ids are.

    Raises:
        ValueError: The file is missing, broken or no PNG, or holds colours or scaled levels instead
            of ids.
    """
    image, stored = _decode(path, max_pixels, _MASK_FORMATS)
    if image.mode not in _MASK_MODES:
        raise ValueError(
            f"{path}: expected a mask of class ids (8-bit grey or palette), but its mode is {image.mode}; "
            + (
                "save it with 8 bits."
                if image.mode == "1"
                else "a mask drawn in colours has to be converted to ids first."
            )
        )
    if image.mode == "L" and stored != "L":
        # PIL makes 0, 85, 170 and 255 of the ids 0 to 3 in two bits: 3 would be void, and 1 in four
        # bits the class 17.
        raise ValueError(
            f"{path}: expected a mask of class ids in 8 bits, but its grey levels are stored as {stored} and scaled to "
            "0..255 when they are read; save it with 8 bits or as a palette image."
        )
    return _frozen(np.asarray(image))


def png(
    pixels: UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"], palette: bytes | None = None
) -> bytes:
    """A PNG of grey levels or ids, which a palette gives colours, or of colours."""
    image, file = Image.fromarray(pixels), BytesIO()
    if palette is not None:
        image.putpalette(palette)
    image.save(file, "PNG")
    return file.getvalue()


def ids_in(mask: UInt8[np.ndarray, "h w"]) -> list[int]:
    """All ids in ``mask``, ascending (a count is several times faster than a sort of the pixels)."""
    return np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()


def open_checked(
    path: Path, max_pixels: int, formats: tuple[str, ...] = FORMATS, content: BytesIO | None = None
) -> Image.Image:
    """Open a file's header: format and size are known, no pixel is decoded yet.

    Args:
        path: The file.
        max_pixels: Most pixels that it may have.
        formats: Formats that are decoded.
        content: What would be in the file, where there is none; ``path`` is then only what messages
            call it.

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
    """A file's image, and how PIL calls the way its pixels are stored: its mode, or ``RGB;16B`` and the like."""
    with open_checked(path, max_pixels, formats, content) as image:
        try:
            # A JPEG of a camera may carry a preview, and a PNG an animation; the pages of a TIFF
            # are all images.
            pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            stored = _stored_as(image)
            image.load()
        # PIL reports a broken file by any of these, depending on the decoder.
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
        return image, stored


def _stored_as(image: Image.Image) -> str:
    tiles = getattr(image, "tile", ())
    arguments: object = tiles[0].args if tiles else image.mode
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _rgb(image: Image.Image, stored: str, path: str) -> UInt8[np.ndarray, "h w 3"]:
    if image.mode not in _CONVERTIBLE:
        raise ValueError(
            f"{path}: expected an 8-bit RGB image, but its mode is {image.mode}; convert it."
        )
    if ";16" in stored:
        raise ValueError(
            f"{path}: expected an 8-bit RGB image, but its colours are of 16 bits ({stored}), of which the lower 8 "
            "would be dropped; scale and convert it."
        )
    return _frozen(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))


def _frozen(array: UInt8[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    array.setflags(write=False)
    return array
