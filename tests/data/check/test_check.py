import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toco.data import voc
from toco.data.check import Report, check_folder

SIZE = (40, 48)  # height, width of the images in conftest.py


def check(root: Path, *, small_side_px: int = 32, **settings: object) -> Report:
    config = voc.Config(**{"root": root, "train_list": "train", **settings})
    return check_folder(config, small_side_px=small_side_px)


def edit_list(root: Path, list_name: str, content: bytes) -> None:
    (root / f"ImageSets/Segmentation/{list_name}.txt").write_bytes(content)


def test_sound_folder(folder: Path) -> None:
    report = check(folder)
    assert report.faults == report.notes == []
    assert report.num_images == {"train": 5, "val": 2}
    assert report.num_images_by_class == {"circle": 2, "square": 3, "star": 2}
    assert str(report).endswith("0 faults, 0 notes.")


def truncate(root: Path) -> None:
    path = root / "JPEGImages/a1.png"
    path.write_bytes(path.read_bytes()[:2000])


def truncate_mask(root: Path) -> None:
    path = root / "SegmentationClass/a1.png"
    path.write_bytes(path.read_bytes()[:-40])


FAULTS: list[tuple[Callable[[Path], object], str, str]] = [
    (truncate, "JPEGImages/a1.png", "truncated or damaged"),
    (
        lambda r: (r / "JPEGImages/a1.png").write_text("<html>"),
        "JPEGImages/a1.png",
        "cannot be read as JPEG or PNG",
    ),
    (
        lambda r: Image.new("I;16", SIZE[::-1]).save(r / "JPEGImages/a1.png"),
        "JPEGImages/a1.png",
        "mode is I;16",
    ),
    (
        lambda r: Image.new("RGB", SIZE[::-1]).save(r / "JPEGImages/a1.jpg"),
        "JPEGImages/a1",
        "found a1.jpg, a1.png",
    ),
    (lambda r: (r / "JPEGImages/a1.png").unlink(), "JPEGImages/a1", "found none"),
    (truncate_mask, "SegmentationClass/a1.png", "truncated or damaged"),
    (
        lambda r: (r / "SegmentationClass/a1.png").unlink(),
        "SegmentationClass/a1.png",
        "there is no mask of 'a1'",
    ),
    (
        lambda r: Image.fromarray(np.ones((9, 9), np.uint8)).save(r / "SegmentationClass/a1.png"),
        "SegmentationClass/a1.png",
        r"image's size \(40, 48\), but it has \(9, 9\)",
    ),
    (
        lambda r: Image.new("RGB", SIZE[::-1]).save(r / "SegmentationClass/a1.png"),
        "SegmentationClass/a1.png",
        "drawn in colours",
    ),
    (
        lambda r: Image.fromarray(np.full(SIZE, 4, np.uint8)).save(r / "SegmentationClass/a1.png"),
        "SegmentationClass/a1.png",
        r"0\.\.3 and 255, but it also has 4",
    ),
    (
        lambda r: Image.fromarray(np.zeros(SIZE, np.uint8)).save(r / "SegmentationClass/a1.png"),
        "SegmentationClass/a1.png",
        "'a1' has no class",
    ),
    (
        lambda r: edit_list(r, "val", b"v1\nv2\nv1\n"),
        "ImageSets/Segmentation/val.txt",
        "'v1' appears 2 times",
    ),
    (
        lambda r: edit_list(r, "val", b"v1\nv2\na1\n"),
        "ImageSets/Segmentation/val.txt",
        "1 of 3 validation images also in training: 'a1'",
    ),
    (
        lambda r: edit_list(r, "val", b"v1\nv2\n../../x\n"),
        "ImageSets/Segmentation/val.txt",
        "leads out",
    ),
    (
        lambda r: edit_list(r, "val", b"v1\nv2\nC:\\x\n"),
        "ImageSets/Segmentation/val.txt",
        "leads out",
    ),
    (lambda r: edit_list(r, "val", b""), "ImageSets/Segmentation/val.txt", "is empty"),
    (lambda r: edit_list(r, "val", b"v1\nv\xff\n"), "ImageSets/Segmentation/val.txt", "UTF-8"),
    (
        lambda r: (r / "ImageSets/Segmentation/val.txt").unlink(),
        "ImageSets/Segmentation/val.txt",
        "no such list",
    ),
    (lambda r: (r / "classes.txt").write_text("a\na\n"), "classes.txt", "different class names"),
]


@pytest.mark.parametrize(
    ("damage", "file", "reason"), FAULTS, ids=[f"{f[1]}:{f[2][:20]}" for f in FAULTS]
)
def test_one_fault_is_reported_once_with_file_and_reason(
    folder: Path, damage: Callable[[Path], object], file: str, reason: str
) -> None:
    damage(folder)
    (fault,) = check(folder).faults
    assert fault.path == folder / file
    assert re.search(reason, fault.reason)
    assert str(fault).count(str(fault.path)) == 1


def test_all_faults_are_reported_at_once(folder: Path) -> None:
    truncate(folder)
    Image.new("RGB", SIZE[::-1]).save(folder / "SegmentationClass/a2.png")
    edit_list(folder, "val", b"v1\r\nv2\r\nv2\r\na1\r\n")
    report = check(folder)
    # a1 is in both lists; its image is reported once.
    assert [fault.path.name for fault in report.faults] == [
        "val.txt",
        "val.txt",
        "a1.png",
        "a2.png",
    ]
    assert "4 faults" in str(report)


def test_small_and_large_images(folder: Path) -> None:
    report = check(folder, small_side_px=41)
    assert report.faults == []
    assert [note.reason for note in report.notes] == [
        "7 images with a side under 41 px: 'a1', 'a2', 'a3', 'a4', 'a5' and 2 more."
    ]
    faults = check(folder, max_pixels=1900).faults
    assert len(faults) == 14
    assert "at most 1900 pixels" in faults[0].reason


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("a1,1\na2,2 3\na3,3\na4,1 2\nv1,1 3\nv2,2", "no label of 'a5'"),
        ("a1,1\na2,2 3\na3,3\na4,1 2\na5,\nv1,1 3\nv2,2", "'a5' has no class"),
        ("a1,1\na2,2 9\na3,3", r"class ids \[9\], expected 1\.\.3"),
    ],
)
def test_label_file_faults(folder: Path, rows: str, reason: str) -> None:
    (folder / "labels.csv").write_text(f"name,class_ids\n{rows}\n")
    report = check(folder, labels=Path("labels.csv"))
    (fault,) = report.faults
    assert fault.path == folder / "labels.csv"
    assert re.search(reason, fault.reason)


def test_training_masks_are_not_needed_with_a_label_file(folder: Path) -> None:
    (folder / "labels.csv").write_text(
        "name,class_ids\na1,1\na2,2 3\na3,3\na4,1 2\na5,2\nv1,1 3\nv2,2\n"
    )
    (folder / "SegmentationClass/a1.png").unlink()
    assert check(folder, labels=Path("labels.csv")).faults == []
    (folder / "SegmentationClass/v1.png").unlink()
    assert [f.path.name for f in check(folder, labels=Path("labels.csv")).faults] == ["v1.png"]


def test_shifted_ids_and_exif_are_notes(folder: Path) -> None:
    (folder / "labels.csv").write_text(
        "name,class_ids\na1,2\na2,2 3\na3,3\na4,1 2\na5,2\nv1,1 3\nv2,2\n"
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "JPEGImages/a5.png").unlink()
    Image.new("RGB", SIZE[::-1]).save(folder / "JPEGImages/a5.jpg", exif=exif)
    report = check(folder, labels=Path("labels.csv"))
    assert report.faults == []
    assert [note.reason for note in report.notes] == [
        "1 image with an EXIF orientation, which is ignored, since masks refer to the stored "
        "pixels (`predict` rotates "
        "files): 'a5'.",
        "1 mask with 'circle' (1), which the image's label does not name: 'a1'.",
    ]


def test_same_list_twice(folder: Path) -> None:
    (fault,) = check(folder, val_list="train").faults
    assert "5 of 5 validation images also in training" in fault.reason
    assert check(folder, val_list="train", allow_overlap=True).faults == []


@pytest.mark.slow
@pytest.mark.skipif(
    "TOCO_VOC_ROOT" not in os.environ, reason="TOCO_VOC_ROOT names no folder of real VOC images"
)
@pytest.mark.parametrize("labels", ["masks", Path("image_labels.csv")])
def test_real_voc_images_are_sound(labels: object) -> None:
    report = check_folder(voc.Config(root=os.environ["TOCO_VOC_ROOT"], labels=labels))
    assert report.faults == []
