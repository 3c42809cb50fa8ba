"""Whatever byte of a data set's files is damaged, reading it gives the values or a sentence that
names the file.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.coco_folder import TRAIN, make_coco
from toco.data import Dataset
from toco.data.check import check_folder
from toco.data.coco_format.annotations import read_annotations
from toco.data.folder import Config as FolderConfig
from toco.data.folder import open_split as open_folder
from toco.data.voc import Config as VocConfig
from toco.data.voc import open_split as open_voc

SIZE = (24, 20)
NUM_DAMAGES = 40
FORMATS = ("png", "jpg", "tif")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VOC-shaped folder with every kind of file that is read, and COCO's annotations."""
    root = tmp_path_factory.mktemp("whole")
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "Annotations"):
        (root / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in FORMATS:
        image = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        settings = {"compression": "tiff_lzw"} if name == "tif" else {"exif": exif}
        image.save(root / f"JPEGImages/{name}.{name}", **settings)
        Image.fromarray(rng.integers(0, 3, SIZE, dtype=np.uint8)).save(
            root / f"SegmentationClass/{name}.png"
        )
        objects = "<object><name>cat</name></object><object><name>dög</name></object>"
        (root / f"Annotations/{name}.xml").write_text(
            f'<?xml version="1.0"?><annotation>{objects}</annotation>'
        )
    (root / "classes.txt").write_text("background\ncat\ndög\n")
    (root / "labels.csv").write_text("name,class_ids\npng,1 2\njpg,1\ntif,2\n")
    (root / "labels.json").write_text('{"png": [1, 2], "jpg": [1], "tif": [2]}')
    np.savez(
        root / "labels.npz",
        names=np.array(FORMATS),
        class_labels=np.array([[1, 1], [1, 0], [0, 1]], np.uint8),
    )
    (root / "ImageSets/Segmentation/train.txt").write_text("png\njpg\n")
    for name in ("train", "val"):
        (root / f"JPEGImages/{name}.txt").write_text("png\njpg\ntif\n")
    make_coco(root / "coco", TRAIN)
    return root


def read_all(dataset: Dataset) -> None:
    for index in range(len(dataset)):
        dataset.class_labels(index)
        dataset.mask(index)
        dataset.image(index)
    dataset.manifest_digest()


def read_voc(labels: str) -> Callable[[Path], None]:
    return lambda root: read_all(
        open_voc(VocConfig(root=root, train_list="train", labels=labels), "train")
    )


def read_folder(root: Path) -> None:
    settings = {
        "classes": "../classes.txt",
        "labels": "../labels.csv",
        "masks": "../SegmentationClass",
    }
    read_all(
        open_folder(FolderConfig.model_validate({"root": root / "JPEGImages", **settings}), "train")
    )


def check(root: Path) -> None:
    check_folder(VocConfig(root=root, train_list="train", val_list="train", allow_overlap=True))


READERS = {
    "classes.txt": read_voc("masks"),
    "ImageSets/Segmentation/train.txt": read_voc("masks"),
    "SegmentationClass/png.png": read_voc("masks"),
    "SegmentationClass/jpg.png": check,
    "JPEGImages/png.png": read_voc("masks"),
    "JPEGImages/jpg.jpg": read_voc("masks"),
    "JPEGImages/tif.tif": read_folder,
    "labels.csv": read_voc("labels.csv"),
    "labels.json": read_voc("labels.json"),
    "labels.npz": read_voc("labels.npz"),
    "Annotations/png.xml": read_voc("xml"),
    "coco/annotations/instances_train2014.json": lambda root: read_annotations(
        root / "coco/annotations/instances_train2014.json"
    ),
}


def damages(content: bytes, rng: np.random.Generator) -> list[bytes]:
    """Cuts, flipped bits, bytes of other encodings and doubled parts."""
    found = [b"", b"\0", b"\xff\xfe", b"[]", content[: len(content) // 2]]
    while len(found) < NUM_DAMAGES:
        first, last = sorted(rng.integers(0, len(content) + 1, 2))
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
        found += [
            bytes(flipped),
            content[:first] + content[last:],
            content[:first] + bytes(rng.integers(0, 256, 4, dtype=np.uint8)) + content[first:],
            content[:last] + content[first:],
        ]
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", READERS)
def test_damage_is_a_sentence_or_nothing(whole: Path, tmp_path: Path, file: str) -> None:
    root = shutil.copytree(whole, tmp_path / "data")
    content = (root / file).read_bytes()
    READERS[file](root)
    sentences = []
    for damaged in damages(content, np.random.default_rng(len(content))):
        (root / file).write_bytes(damaged)
        try:
            READERS[file](root)
        except (ValueError, LookupError) as error:
            sentences.append(str(error))
    for sentence in sentences:
        assert str(root) in sentence, sentence
        assert "\n" not in sentence
        assert "Error(" not in sentence
    assert file == "SegmentationClass/jpg.png" or len(sentences) > NUM_DAMAGES // 10
