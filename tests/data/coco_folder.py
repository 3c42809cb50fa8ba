"""A COCO of four images of 6 x 5 px, with masks that can be drawn by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toco.data.coco_format.classes import CATEGORY_IDS, COCO_CLASSES

HEIGHT, WIDTH = 5, 6


def box(left: int, top: int, right: int, bottom: int) -> list[float]:
    """Outline of the pixels from (left, top) up to, but without, (right, bottom)."""
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(
    number: int, image: int, category: int, segmentation: object, crowd: int = 0
) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": crowd,
        "segmentation": segmentation,
        "bbox": [0, 0, 1, 1],
    }


def name(part: str, number: int) -> str:
    return f"COCO_{part}_{number:012}"


# Every column of the crowd: three pixels outside, two inside.
TRAIN = [
    annotation(1, 9, 13, [box(0, 0, 6, 4)]),
    annotation(2, 9, 1, [box(1, 1, 4, 3)]),
    annotation(3, 9, 90, {"counts": [3, 2] * WIDTH, "size": [HEIGHT, WIDTH]}, crowd=1),
    annotation(4, 25, 90, [box(0, 0, 2, 1), box(4, 4, 6, 5)]),
    annotation(5, 25, 44, [box(2, 2, 4, 4)]),
    annotation(6, 25, 3, [box(2, 2, 4, 4)]),
]
VAL = [annotation(7, 42, 27, [box(0, 0, 3, 5)])]
MASKS = {
    # A stop sign (13 becomes 12), a person over it, and a crowd of toothbrushes, void where there
    # is no stop sign.
    name("train2014", 9): [
        [12, 12, 12, 12, 12, 12],
        [12, 1, 1, 1, 12, 12],
        [12, 1, 1, 1, 12, 12],
        [12, 12, 12, 12, 12, 12],
        [255, 255, 255, 255, 255, 255],
    ],
    # A toothbrush in two parts (80), and a bottle (40) over a car of the same size, which was
    # annotated after it.
    name("train2014", 25): [
        [80, 80, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 40, 40, 0, 0],
        [0, 0, 40, 40, 0, 0],
        [0, 0, 0, 0, 80, 80],
    ],
    name("val2014", 42): [[25, 25, 25, 0, 0, 0]] * HEIGHT,
}
LABELS = {
    name("train2014", 9): [1, 12],
    name("train2014", 25): [3, 40, 80],
    name("val2014", 42): [25],
}


def content(part: str, annotations: list[dict[str, Any]], without_objects: int) -> dict[str, Any]:
    """An annotation file; the image ``without_objects`` has none."""
    numbers = sorted({item["image_id"] for item in annotations} | {without_objects}, reverse=True)
    return {
        "info": {"year": 2014},
        "images": [
            {"id": n, "file_name": f"{name(part, n)}.jpg", "height": HEIGHT, "width": WIDTH}
            for n in numbers
        ],
        "annotations": annotations,
        "categories": [
            {"id": i, "name": n, "supercategory": "thing"}
            for i, n in zip(CATEGORY_IDS, COCO_CLASSES, strict=True)
        ],
    }


def make_coco(root: Path, train: list[dict[str, Any]] = TRAIN) -> Path:
    """Images and annotations under ``root``; nothing is prepared."""
    (root / "annotations").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, annotations, empty in (("train2014", train, 30), ("val2014", VAL, 99)):
        (root / part).mkdir()
        written = content(part, annotations, empty)
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(written))
        for image in written["images"]:
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / part / image["file_name"])
    return root
