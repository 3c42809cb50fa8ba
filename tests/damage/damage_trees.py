"""Data sets as people have them, all tiny."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from toco.data.coco_format.classes import CATEGORY_IDS, COCO_CLASSES


def make_folder_set(root: Path) -> Path:
    """A ``folder`` data set of eight images with the same labels as CSV, JSON and NPZ, lists and
    masks.
    """
    (root / "north").mkdir(parents=True)
    (root / "masks" / "north").mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = {}
    for number in range(8):
        name = f"north/tile{number}"
        mask = np.zeros((40, 48), np.uint8)
        mask[8:28, 4 + number : 24 + number] = number % 2 + 1
        image = rng.integers(60, 120, (40, 48, 3), dtype=np.uint8)
        image[mask > 0, 2 * (number % 2)] = 220
        Image.fromarray(image).save(root / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
        labels[name] = [number % 2 + 1]
    (root / "classes.txt").write_text("red\nblue\n")
    rows = [f"{name},{' '.join(map(str, ids))}\n" for name, ids in labels.items()]
    (root / "labels.csv").write_text("name,class_ids\n" + "".join(rows))
    (root / "labels.json").write_text(json.dumps(labels))
    one_hot = np.array([[number in ids for number in (1, 2)] for ids in labels.values()], np.uint8)
    np.savez(root / "labels.npz", names=np.array(list(labels)), labels=one_hot)
    names = list(labels)
    (root / "train.txt").write_text("".join(f"{name}\n" for name in names[:6]))
    (root / "val.txt").write_text("".join(f"{name}\n" for name in names[6:]))
    return root


def make_coco(root: Path) -> Path:
    """COCO 2014 of three images to train on and two to validate on, one of
    them without an object.
    """
    (root / "annotations").mkdir(parents=True)
    rng = np.random.default_rng(0)
    categories = [
        {"id": i, "name": name} for i, name in zip(CATEGORY_IDS, COCO_CLASSES, strict=True)
    ]
    for part, numbers in (("train2014", (9, 25, 30)), ("val2014", (42, 99))):
        (root / part).mkdir()
        names = {number: f"COCO_{part}_{number:012}.jpg" for number in numbers}
        for name in names.values():
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / part / name)
        objects = [
            {
                "id": number,
                "image_id": number,
                "category_id": CATEGORY_IDS[number % 3],
                "iscrowd": 0,
                "segmentation": [[4, 4, 30, 4, 30, 30, 4, 30]],
                "bbox": [4, 4, 26, 26],
            }
            for number in numbers[:2]
        ]
        images = [{"id": i, "file_name": n, "height": 40, "width": 48} for i, n in names.items()]
        content = {"images": images, "annotations": objects, "categories": categories}
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root


def files_under(folder: Path) -> dict[str, bytes]:
    """Content of every file, by its path; hidden files are the program's own."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
