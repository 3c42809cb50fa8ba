"""Image-level labels and index masks from COCO's annotation files (``instances_train2014.json``).

- Labels: every class with an object that is no crowd, even if other objects cover it.
- Masks: smaller objects lie over larger ones, by number of pixels, so that a person on a couch is
  visible. Of two equal objects the first one is on top. A crowd is void (255) and lies below all
  objects, since only some of its pixels belong to the class.

COCO's own C code draws the objects. It does not check its input, so this module checks everything
before.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from pycocotools import mask as coco_mask

from toco.data.coco_format.classes import CATEGORY_IDS, COCO_CLASSES
from toco.data.files.images import MAX_PIXELS, png
from toco.files import UnreadableError, read_json, sha256, write_text
from toco.types import IGNORE_INDEX

RULES = "80 classes; smaller objects over larger ones; crowds void, below all objects"
"""Rules by which masks are made from an annotation file."""
_KEYS = ("images", "annotations", "categories")
_FILE_NAME = re.compile(r"([A-Za-z0-9_-]+)\.jpg")
_MIN_COORDINATES = 6  # a triangle; COCO's code takes four numbers for a box
_DRAWN_PER_PIXEL = 4
"""Longest outline of a polygon, as a multiple of the image's pixels.

COCO's code allocates memory in proportion to the outline.
"""
_CLASS_IDS = {category: i for i, category in enumerate(CATEGORY_IDS, start=1)}


@dataclass(frozen=True, slots=True)
class CocoObject:
    """Object or crowd.

    Attributes:
        image_id: Id of the image.
        class_id: Class, 1 to 80.
        is_crowd: Whether it is a crowd.
        polygons: Flat outlines x, y, x, y, ... in px; empty if ``runs`` is set.
        runs: Lengths of runs, column by column, starting with a run outside of the object.
    """

    image_id: int
    class_id: int
    is_crowd: bool
    polygons: tuple[Float64[np.ndarray, " _"], ...]
    runs: Int64[np.ndarray, " runs"] | None


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """Image with at least one object or crowd."""

    name: str
    height: int
    width: int
    objects: tuple[CocoObject, ...]

    def class_ids(self) -> tuple[int, ...]:
        """Return the ascending classes of the objects; crowds do not count."""
        return tuple(sorted({item.class_id for item in self.objects if not item.is_crowd}))

    def mask(self) -> UInt8[np.ndarray, "h w"]:
        """Draw the mask; the module's docstring has the order of the objects."""
        layers = [(item, self._pixels(item)) for item in self.objects]
        layers.reverse()  # the sort is stable: of equal objects, the first is drawn last, on top
        layers.sort(key=lambda pair: (not pair[0].is_crowd, -int(np.count_nonzero(pair[1]))))
        mask = np.zeros((self.height, self.width), dtype=np.uint8)
        for item, pixels in layers:
            mask[pixels] = IGNORE_INDEX if item.is_crowd else item.class_id
        return mask

    def _pixels(self, item: CocoObject) -> np.ndarray:
        if item.runs is not None:
            is_inside = np.arange(len(item.runs)) % 2 == 1
            return np.repeat(is_inside, item.runs).reshape(self.width, self.height).T
        parts = coco_mask.frPyObjects(list(item.polygons), self.height, self.width)
        return np.asarray(coco_mask.decode(coco_mask.merge(parts)), dtype=bool)


@dataclass(frozen=True, slots=True)
class Annotations:
    """Content of an annotation file.

    Attributes:
        sha256: SHA-256 of the file.
        images: Images with at least one object or crowd, sorted by id. COCO also has images without
            objects, which the usual lists of the field do not contain.
        num_without_objects: Number of images without objects, which are dropped.
    """

    sha256: str
    images: tuple[AnnotatedImage, ...]
    num_without_objects: int

    def mask_png(self, index: int) -> bytes:
        """Return the mask of an image as a grey PNG."""
        return png(self.images[index].mask())

    def write_labels(self, path: Path) -> None:
        """Write image-level labels for :func:`toco.data.files.label_table.read_table`.

        The file appears complete or not at all.
        """
        write_text(
            path,
            json.dumps({image.name: image.class_ids() for image in self.images}, indent=0) + "\n",
        )


def read_annotations(path: Path) -> Annotations:
    """Read and check an annotation file.

    Memory holds its text once, and its outlines as arrays.

    Raises:
        ValueError: The file is missing or no annotation file, has other categories than COCO, or
            has an invalid object.
    """
    # Text and outlines.
    try:
        sha256_of_file = sha256(path)
        # Outlines become arrays while the file is parsed: lists of numbers would take four times
        # the memory.
        root = read_json(path, object_pairs_hook=_object_or_dict)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: there is no such file of annotations. It is in COCO's "
            "annotations_trainval2014.zip; unpack that into the folder of the data set, or name "
            "the folder of the files with --annotations."
        ) from None
    except _ObjectError as error:
        raise ValueError(f"{path}: cannot be read as COCO's annotations ({error}).") from error

    # Categories, objects by image, and images.
    try:
        if not isinstance(root, dict) or not all(isinstance(root.get(key), list) for key in _KEYS):
            raise ValueError(f"expected an object with the lists {', '.join(_KEYS)}")
        _check_categories(root["categories"])
        by_image: dict[int, list[CocoObject]] = {}
        for item in root["annotations"]:
            if not isinstance(item, CocoObject):
                raise ValueError(f"expected annotations with a segmentation, found {_short(item)}")
            by_image.setdefault(item.image_id, []).append(item)
        images = dict(_image(row, by_image) for row in root["images"])
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as COCO's annotations ({error}).") from error

    # Unique images, and no object without an image.
    if len(images) != len(root["images"]) or len({image.name for image in images.values()}) != len(
        images
    ):
        raise ValueError(f"{path}: two images have one id or one name.")
    if unknown := by_image.keys() - images.keys():
        raise ValueError(
            f"{path}: there are objects of images that are not listed, such as {min(unknown)}."
        )
    annotated = tuple(images[i] for i in sorted(by_image))
    return Annotations(sha256_of_file, annotated, len(images) - len(annotated))


class _ObjectError(UnreadableError):
    """Invalid annotation; the message names the annotation, but not the file."""


def _object_or_dict(pairs: list[tuple[str, Any]]) -> CocoObject | dict[str, Any]:
    row = dict(pairs)
    if "segmentation" not in row:
        return row
    try:
        return _object(row)
    except ValueError as error:
        raise _ObjectError(f"annotation {_short(row.get('id'))}: {error}") from error


def _object(row: dict[str, Any]) -> CocoObject:
    if missing := [key for key in ("category_id", "iscrowd", "image_id") if key not in row]:
        raise ValueError(f"it has no {missing[0]}")
    category, is_crowd, image_id = row["category_id"], row["iscrowd"], row["image_id"]
    if type(category) is not int or category not in _CLASS_IDS:
        raise ValueError(f"its category {_short(category)} is none of COCO's 80")
    if type(image_id) is not int or is_crowd not in (0, 1):
        raise ValueError(f"image_id {_short(image_id)}, iscrowd {_short(is_crowd)}")
    class_id, segmentation = _CLASS_IDS[category], row["segmentation"]
    if isinstance(segmentation, list) and segmentation:
        try:
            polygons = tuple(np.array(polygon, dtype=np.float64) for polygon in segmentation)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError("its polygons are no lists of numbers") from error
        if any(
            p.ndim != 1 or len(p) < _MIN_COORDINATES or len(p) % 2 or not np.isfinite(p).all()
            for p in polygons
        ):
            raise ValueError("expected polygons of at least three points")
        return CocoObject(image_id, class_id, bool(is_crowd), polygons, None)
    if not isinstance(segmentation, dict) or not isinstance(
        counts := segmentation.get("counts"), list
    ):
        raise ValueError(
            "expected polygons or a list of runs; compressed runs are not in the official files"
        )
    if not all(type(count) is int and 0 <= count < 2**31 for count in counts):
        raise ValueError("expected runs as numbers of pixels")
    return CocoObject(image_id, class_id, bool(is_crowd), (), np.array(counts, dtype=np.int64))


def _check_categories(rows: list[Any]) -> None:
    expected = dict(zip(CATEGORY_IDS, COCO_CLASSES, strict=True))
    for row in rows:
        if not isinstance(row, dict) or expected.get(row.get("id", 0)) != row.get("name"):
            raise ValueError(
                f"the category {_short(row)} is none of COCO's 80; other data sets are read as "
                "data.name=folder"
            )


def _image(row: object, by_image: dict[int, list[CocoObject]]) -> tuple[int, AnnotatedImage]:
    if not isinstance(row, dict):
        raise ValueError(f"expected an image, found {_short(row)}")
    number, height, width = (row.get(key) for key in ("id", "height", "width"))
    name = _FILE_NAME.fullmatch(str(row.get("file_name")))
    if not (
        name and isinstance(number, int) and isinstance(height, int) and isinstance(width, int)
    ):
        raise ValueError(
            f"expected an image with id, file_name, height and width, found {_short(row)}"
        )
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"expected images of 1 to {MAX_PIXELS} px, found {_short(row)}")
    image = AnnotatedImage(name[1], height, width, tuple(by_image.get(number, ())))
    for item in image.objects:
        _check_inside(item, image)
    return number, image


def _check_inside(item: CocoObject, image: AnnotatedImage) -> None:
    """Refuse an object whose runs or outlines do not fit its image."""
    if item.runs is not None and int(item.runs.sum()) != image.height * image.width:
        raise ValueError(
            f"the runs of an object of {image.name} are not of {image.height} x {image.width} px"
        )
    for polygon in item.polygons:
        points = polygon.reshape(-1, 2)
        size = np.array([image.width, image.height])
        is_far = (points < -size).any() or (points > 2 * size).any()
        length = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()
        if is_far or length > _DRAWN_PER_PIXEL * image.height * image.width:
            raise ValueError(
                f"an outline of an object of {image.name} lies far outside or covers the image "
                "several times"
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."
