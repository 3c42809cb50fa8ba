"""Convert label images to COCO annotations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as run_lengths


def coco_annotations(
    file_names: Sequence[str],
    labels: Iterable[UInt8[np.ndarray, "_ _"]],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Make the content of a file for :class:`pycocotools.coco.COCO`.

    The format is that of COCO-Stuff for semantic segmentation. Each class in each image has one
    annotation with all its pixels, as compressed run lengths; the background has none. Images are
    numbered from 1 in order. ``class_names[j]`` has the category id ``j + 1``, even if the classes
    are COCO's, whose official ids have gaps.

    Args:
        file_names: File names of the images.
        labels: Label of each image, in the same order and at the image's size: 0 background, 1..k.
        class_names: Foreground classes.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (file_name, label) in enumerate(zip(file_names, labels, strict=True), start=1):
        height, width = label.shape
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for category_id in np.unique(label[label > 0]).tolist():
            encoded = run_lengths.encode(np.asfortranarray(label == category_id))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "segmentation": {
                        "size": [height, width],
                        "counts": encoded["counts"].decode("ascii"),
                    },
                    "area": int(run_lengths.area(encoded)),
                    "bbox": run_lengths.toBbox(encoded).tolist(),
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": i, "name": name, "supercategory": name}
        for i, name in enumerate(class_names, start=1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}
