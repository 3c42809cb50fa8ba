import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toco.config import digest, replace
from toco.data.files.layout import VOC_CLASSES
from toco.data.voc import Config, open_split

# The folder of conftest.py.
CLASSES = ("circle", "square", "star")
IDS = {"a1": (1,), "a2": (2, 3), "a3": (3,), "a4": (1, 2), "a5": (2,), "v1": (1, 3), "v2": (2,)}
TRAIN, VAL = ("a1", "a2", "a3", "a4", "a5"), ("v1", "v2")
SIZE = (40, 48)  # height, width


def config(root: Path, **changes: object) -> Config:
    return Config.model_validate({"root": root, "train_list": "train", **changes})


def ids(labels: np.ndarray) -> tuple[int, ...]:
    return tuple((np.flatnonzero(labels) + 1).tolist())


def write_labels(root: Path, kind: str) -> None:
    if kind == "xml":
        (root / "Annotations").mkdir()
        for name, class_ids in IDS.items():
            # A part with a name of its own and a second object of a class: neither is another
            # class.
            objects = "".join(
                f"<object><name>{CLASSES[i - 1]}</name><difficult>1</difficult>"
                "<part><name>head</name></part></object>"
                for i in (*class_ids, class_ids[0])
            )
            (root / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    elif kind == "labels.csv":
        rows = [f"{name},{' '.join(map(str, class_ids))},extra" for name, class_ids in IDS.items()]
        (root / kind).write_bytes("\r\n".join(["name,class_ids,split", *rows]).encode())
    elif kind == "labels.json":
        (root / kind).write_text(json.dumps(IDS))
    elif kind == "labels.npz":
        vectors = np.array(
            [[i in class_ids for i in (1, 2, 3)] for class_ids in IDS.values()], dtype=np.uint8
        )
        np.savez(root / kind, names=np.array(list(IDS)), class_labels=vectors)


def test_splits_images_and_masks(folder: Path) -> None:
    train, val = open_split(config(folder), "train"), open_split(config(folder), "val")
    assert (train.names, val.names, train.class_names) == (TRAIN, VAL, CLASSES)
    assert len(train) == 5
    stored = np.asarray(Image.open(folder / "JPEGImages/a2.png"))
    np.testing.assert_array_equal(train.image(1), stored)
    mask = train.mask(1)
    assert mask.shape == SIZE
    assert (mask[5, 6], mask[15, 6], mask[0, 0], mask[-1, 0]) == (2, 3, 0, 255)
    with pytest.raises(ValueError, match="read-only"):
        train.image(0)[0, 0, 0] = 1


@pytest.mark.parametrize("source", ["masks", "xml", "labels.csv", "labels.json", "labels.npz"])
def test_every_source_gives_the_same_labels(folder: Path, source: str) -> None:
    write_labels(folder, source)
    dataset = open_split(config(folder, labels=source), "train")
    assert [ids(dataset.class_labels(i)) for i in range(5)] == [IDS[name] for name in TRAIN]
    assert dataset.class_labels(0).dtype == np.float32


def test_grey_masks_and_aug_folder(new_folder: Callable[[str, str], Path]) -> None:
    root = new_folder("aug", "SegmentationClassAug")
    (root / "SegmentationClass").mkdir()
    mask = np.asarray(Image.open(root / "SegmentationClassAug/a1.png")).copy()
    Image.fromarray(mask).save(root / "SegmentationClassAug/a1.png")
    np.testing.assert_array_equal(open_split(config(root), "train").mask(0), mask)
    with pytest.raises(LookupError, match="no mask"):
        open_split(config(root, mask_folder="SegmentationClass"), "train").mask(0)


def test_voc_classes_without_a_class_file(folder: Path) -> None:
    (folder / "classes.txt").unlink()
    assert open_split(config(folder), "train").class_names == VOC_CLASSES
    assert (len(VOC_CLASSES), VOC_CLASSES[14]) == (20, "person")


def test_crlf_list_reads_as_lf(folder: Path) -> None:
    path = folder / "ImageSets/Segmentation/train.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert open_split(config(folder), "train").names == TRAIN


@pytest.mark.parametrize(
    ("changes", "lines", "message"),
    [
        ({"train_list": "train_aug"}, None, "lists there: train, val"),
        ({}, "a1\na2\na1\n", "'a1' appears 2 times"),
        ({}, "a1\n../vöc data/JPEGImages/a2\n", "leads out"),
        ({}, "/etc/passwd\n", "leads out"),
        ({}, "/JPEGImages/a1.png /SegmentationClass/a1.png\n", "leads out"),
        ({}, "a1 1\n", "is not one name"),
        ({}, "a1\nzz\n", "1 of 2 images are missing: 'zz'"),
        ({}, "\n", "the list is empty"),
        ({"labels": "labels.csv"}, None, "no such file of labels"),
        ({"labels": "labels.txt"}, None, "convert-labels"),
        ({"classes": "none.txt"}, None, "one class name a line"),
    ],
)
def test_open_refuses(
    folder: Path, changes: dict[str, object], lines: str | None, message: str
) -> None:
    if lines is not None:
        (folder / "ImageSets/Segmentation/train.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        open_split(config(folder, **changes), "train")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set data\.root"):
        open_split(config(tmp_path / "nothing"), "train")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labels.csv", "name,class_ids\na1,0\n", r"'a1' has the class ids \[0\], expected 1\.\.3"),
        ("labels.csv", "name,class_ids\na1,4\n", r"class ids \[4\]"),
        ("labels.csv", "name,class_ids\na1,1\na1,2\n", "'a1' appears twice"),
        ("labels.csv", "name,class_ids\na1,1\n", "no label of 'a2'"),
        ("labels.csv", "name,class_ids\na1,cat\n", "cannot be read as labels"),
        ("labels.csv", "image,ids\na1,1\n", "columns name and class_ids"),
        ("labels.json", '{"a1": [1], "a1": [2]}', "'a1' appears twice"),
        ("labels.json", '{"a1": [true]}', "list of class ids for 'a1'"),
        ("labels.json", '["a1"]', "one object"),
        ("labels.json", "{", "is not JSON"),
        ("labels.npz", "no zip", "cannot be read as labels"),
    ],
)
def test_label_file_faults_are_said_at_opening(
    folder: Path, file: str, content: str, message: str
) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        open_split(config(folder, labels=file), "train")


def test_npz_of_other_classes_or_with_pickles_is_refused(folder: Path) -> None:
    np.savez(
        folder / "labels.npz", names=np.array(list(IDS)), class_labels=np.zeros((7, 20), np.uint8)
    )
    with pytest.raises(ValueError, match=r"shape \(7, 3\), found \(7, 20\)"):
        open_split(config(folder, labels="labels.npz"), "train")
    np.savez(
        folder / "labels.npz",
        names=np.array(list(IDS), dtype=object),
        class_labels=np.zeros((7, 3), np.uint8),
    )
    with pytest.raises(ValueError, match="allow_pickle"):
        open_split(config(folder, labels="labels.npz"), "train")


def test_empty_label_is_refused_in_training_only(folder: Path) -> None:
    for name in ("a1", "v1"):
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(folder / f"SegmentationClass/{name}.png")
    with pytest.raises(ValueError, match="'a1' has no class"):
        open_split(config(folder), "train").class_labels(0)
    assert open_split(config(folder, allow_empty_labels=True), "train").class_labels(0).sum() == 0
    assert open_split(config(folder), "val").class_labels(0).sum() == 0


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (
            "<annotation><object><name>dog</name></object></annotation>",
            "'dog' is not in the class list",
        ),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "has a document type"),
        ("<annotation>", "cannot be read as XML"),
    ],
)
def test_annotation_faults(folder: Path, xml: str, message: str) -> None:
    (folder / "Annotations").mkdir()
    (folder / "Annotations/a1.xml").write_text(xml)
    dataset = open_split(config(folder, labels="xml"), "train")
    with pytest.raises(ValueError, match=message):
        dataset.class_labels(0)
    with pytest.raises(ValueError, match="no such annotation"):
        dataset.class_labels(1)


def test_mask_faults(folder: Path) -> None:
    masks = folder / "SegmentationClass"
    Image.new("RGB", SIZE[::-1]).save(masks / "a1.png")
    Image.new("L", (10, 10)).save(masks / "a2.png")
    Image.new("L", SIZE[::-1], 4).save(masks / "a3.png")
    Image.new("I;16", SIZE[::-1]).save(masks / "a4.png")
    Image.new("1", SIZE[::-1]).save(masks / "a5.png")
    dataset = open_split(config(folder), "train")
    for index, message in enumerate(
        ["drawn in colours", "image's size", "also has 4", "mode is I;16", "mode is 1"]
    ):
        with pytest.raises(ValueError, match=message):
            dataset.mask(index)


def test_image_modes(folder: Path) -> None:
    images = folder / "JPEGImages"
    Image.new("L", (50, 40), 7).save(images / "a1.png")
    Image.new("RGBA", (50, 40), (1, 2, 3, 4)).save(images / "a2.png")
    Image.new("I;16", (50, 40)).save(images / "a3.png")
    (images / "a4.png").unlink()
    Image.new("CMYK", (50, 40)).save(images / "a4.jpg")
    Image.new("RGB", (50, 40)).save(images / "a5.png", format="BMP")
    dataset = open_split(config(folder), "train")
    assert dataset.image(0)[3, 4].tolist() == [7, 7, 7]
    assert dataset.image(1)[3, 4].tolist() == [1, 2, 3]
    assert dataset.image(3)[3, 4].tolist() == [255, 255, 255]
    with pytest.raises(ValueError, match="mode is I;16"):
        dataset.image(2)
    with pytest.raises(ValueError, match="JPEG or PNG"):
        dataset.image(4)


def test_truncated_and_oversized_images(folder: Path) -> None:
    path = folder / "JPEGImages/a1.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="truncated or damaged"):
        open_split(config(folder), "train").image(0)
    with pytest.raises(ValueError, match="at most 1000 pixels, but it has 48 x 40"):
        open_split(config(folder, max_pixels=1000), "train").image(1)


def test_exif_orientation_is_ignored(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "JPEGImages/a1.png").unlink()
    Image.new("RGB", SIZE[::-1]).save(folder / "JPEGImages/a1.jpg", exif=exif)
    assert open_split(config(folder), "train").image(0).shape == (*SIZE, 3)


def test_cache_holds_pixels_here_and_not_in_a_pickle(folder: Path) -> None:
    dataset = open_split(config(folder, cache="memory"), "train")
    image, mask = dataset.image(0), dataset.mask(0)
    size = len(pickle.dumps(dataset))
    assert dataset.image(0) is image
    assert dataset.mask(0) is mask
    assert size < image.nbytes
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset)).image(0), image)  # noqa: S301
    assert open_split(config(folder), "train").image(0) is not open_split(
        config(folder), "train"
    ).image(0)


def test_manifest_digest_follows_content(folder: Path, tmp_path: Path) -> None:
    before = open_split(config(folder), "train").manifest_digest()
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert open_split(config(moved), "train").manifest_digest() == before
    assert open_split(config(folder), "val").manifest_digest() != before
    mask = np.asarray(Image.open(folder / "SegmentationClass/a1.png")).copy()
    mask[0, 0] = 3
    Image.fromarray(mask).save(folder / "SegmentationClass/a1.png")
    assert open_split(config(folder), "train").manifest_digest() != before
    for file in ("labels.json",):
        write_labels(moved, file)
        with_file = open_split(config(moved, labels=file), "train").manifest_digest()
        (moved / file).write_text(json.dumps({**IDS, "a1": [2]}))
        assert open_split(config(moved, labels=file), "train").manifest_digest() != with_file


def test_config_survives_json_and_cache_is_outside_the_digest(folder: Path) -> None:
    first = config(folder, labels="image_labels.csv")
    assert Config.model_validate_json(first.model_dump_json()) == first
    assert replace(first, {"labels": "xml"}).labels == "xml"
    assert digest(first) == digest(replace(first, {"cache": "node", "cache_root": "/somewhere"}))
    assert digest(first) != digest(replace(first, {"labels": "xml"}))


@pytest.mark.skipif(
    "TOCO_VOC_ROOT" not in os.environ, reason="TOCO_VOC_ROOT names no folder of real VOC images"
)
def test_real_voc_images() -> None:
    root = Path(os.environ["TOCO_VOC_ROOT"])
    by_mask = open_split(Config(root=root), "train")
    by_csv = open_split(Config(root=root, labels=Path("image_labels.csv")), "train")
    assert by_mask.class_names == VOC_CLASSES
    for index in range(0, len(by_mask), 9):
        assert by_mask.mask(index).shape == by_mask.image(index).shape[:2]
        # Annotations name objects that a mask does not show; the other way round never.
        assert set(ids(by_mask.class_labels(index))) <= set(ids(by_csv.class_labels(index)))
