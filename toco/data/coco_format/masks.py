"""Numbering of classes in COCO masks: detect it, and convert categories to classes.

Categories are the ids of the annotation files (1 to 90, with gaps); classes are 1 to 80.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from toco.data.coco_format.classes import CATEGORY_IDS, COCO_CLASSES
from toco.data.files.images import MAX_PIXELS, ids_in, png, read_ids
from toco.types import IGNORE_INDEX

_CLASS_OF_CATEGORY = np.arange(256, dtype=np.uint8)
_CLASS_OF_CATEGORY[list(CATEGORY_IDS)] = np.arange(1, len(CATEGORY_IDS) + 1)


def numberings(ids: Iterable[int]) -> tuple[int, ...]:
    """Return the numberings, 80 or 91, that allow these mask ids.

    Both are returned only if they assign different classes to the ids.

    >>> numberings([1, 11]), numberings([1, 12]), numberings([1, 90])
    ((80,), (80,), (91,))
    >>> numberings([1, 13]), numberings([1, 182])
    ((80, 91), ())
    """
    foreground = set(ids) - {0, IGNORE_INDEX}
    fits_80, fits_91 = (
        max(foreground, default=0) <= len(COCO_CLASSES),
        foreground <= set(CATEGORY_IDS),
    )
    numbers_agree = all(CATEGORY_IDS[i - 1] == i for i in foreground if i <= len(COCO_CLASSES))
    return (80,) * fits_80 + (91,) * (fits_91 and not (fits_80 and numbers_agree))


def renumber(path: Path) -> bytes:
    """Convert a PNG mask of categories to the classes 1 to 80; keep background and void.

    Raises:
        ValueError: The file is no mask of ids, or an id is no category.
    """
    mask = read_ids(path, MAX_PIXELS)
    unknown = sorted(set(ids_in(mask)) - {0, IGNORE_INDEX, *CATEGORY_IDS})
    if unknown:
        raise ValueError(
            f"{path}: expected ids of COCO's categories, but {unknown} are none; its classes are "
            "numbered in another way."
        )
    return png(_CLASS_OF_CATEGORY[mask])
