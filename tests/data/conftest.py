from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("circle", "square", "star")
IDS = {"a1": (1,), "a2": (2, 3), "a3": (3,), "a4": (1, 2), "a5": (2,), "v1": (1, 3), "v2": (2,)}
TRAIN, VAL = ("a1", "a2", "a3", "a4", "a5"), ("v1", "v2")
SIZE = (40, 48)  # height, width


def make_folder(root: Path, masks: str = "SegmentationClass") -> Path:
    """A sound VOC-shaped folder of seven small images in three classes."""
    for folder in ("JPEGImages", "ImageSets/Segmentation", masks):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("background\n" + "\n".join(CLASSES) + "\n")
    for list_name, names in (("train", TRAIN), ("val", VAL)):
        (root / f"ImageSets/Segmentation/{list_name}.txt").write_text("\n".join(names) + "\n")
    rng = np.random.default_rng(0)
    for name, ids in IDS.items():
        image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.png")
        mask = np.zeros(SIZE, dtype=np.uint8)
        for i, class_id in enumerate(ids):
            mask[4 + 10 * i : 10 + 10 * i, 5:20] = class_id
        mask[-2:] = 255
        save_palette(mask, root / masks / f"{name}.png")
    return root


def save_palette(mask: np.ndarray, path: Path) -> None:
    image = Image.fromarray(mask).convert("P")
    image.putpalette([(37 * i) % 256 for i in range(768)])
    # Pixels are set after the palette, so that they are indices and not nearest colours.
    image.frombytes(mask.tobytes())
    image.save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "vöc data")


@pytest.fixture
def new_folder(tmp_path: Path) -> Callable[[str, str], Path]:
    return lambda name, masks: make_folder(tmp_path / name, masks)
