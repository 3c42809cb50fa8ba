"""How masks of COCO number their classes, and the way from its categories (1 to 90, with gaps) to 1 to 80."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from toco.data.coco_format.classes import CATEGORY_IDS, COCO_CLASSES
from toco.data.files.images import MAX_PIXELS, ids_in, png, read_ids
from toco.data.files.tree import read_tree
from toco.files import sha256
from toco.types import IGNORE_INDEX

_CLASS_OF_CATEGORY = np.arange(256, dtype=np.uint8)
_CLASS_OF_CATEGORY[list(CATEGORY_IDS)] = np.arange(1, len(CATEGORY_IDS) + 1)


def numberings(ids: Iterable[int]) -> tuple[int, ...]:
    """The numberings, 80 and 91, in which masks with these ids make sense; both only where they say different things.

    >>> numberings([1, 11]), numberings([1, 12]), numberings([1, 90]), numberings([1, 13]), numberings([1, 182])
    ((80,), (80,), (91,), (80, 91), ())
    """
    foreground = set(ids) - {0, IGNORE_INDEX}
    of_80, of_91 = max(foreground, default=0) <= len(COCO_CLASSES), foreground <= set(CATEGORY_IDS)
    same = all(CATEGORY_IDS[i - 1] == i for i in foreground if i <= len(COCO_CLASSES))
    return (80,) * of_80 + (91,) * (of_91 and not (of_80 and same))


class Renumbering:
    """All masks under a folder, as masks of the classes 1 to 80.

    Args:
        source: Folder of PNG masks that hold categories, in subfolders or not.

    Attributes:
        names: Of masks, relative to the folder, without suffix.
        notes: What else lies in the folder and is left out.

    Raises:
        ValueError: There is no mask, or a folder cannot be opened.
    """

    def __init__(self, source: Path) -> None:
        self._source = source
        tree = read_tree(source, (".png",))
        self.names, self.notes = tree.names, tree.notes()
        if not self.names:
            raise ValueError(f"{source}: expected PNG masks in it or in folders below, but there is none.")

    def sha256(self, index: int) -> str:
        """SHA-256 (hex) of the file of one of them."""
        return sha256(self._source / f"{self.names[index]}.png")

    def png(self, index: int) -> bytes:
        """One of them; background and void stay.

        Raises:
            ValueError: The file is no mask of ids, or has an id that is no category.
        """
        path = self._source / f"{self.names[index]}.png"
        mask = read_ids(path, MAX_PIXELS)
        unknown = sorted(set(ids_in(mask)) - {0, IGNORE_INDEX, *CATEGORY_IDS})
        if unknown:
            raise ValueError(
                f"{path}: expected ids of COCO's categories, but {unknown} are none; its classes are numbered in "
                "another way."
            )
        return png(_CLASS_OF_CATEGORY[mask])
