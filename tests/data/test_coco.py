import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.data.coco_folder import (
    HEIGHT,
    LABELS,
    MASKS,
    TRAIN,
    WIDTH,
    annotation,
    box,
    content,
    make_coco,
)
from toco.__main__ import main
from toco.data.coco import CocoFolder, Config, open_split
from toco.data.coco_format.annotations import read_annotations
from toco.data.coco_format.classes import CATEGORY_IDS, COCO_CLASSES

FIRST, SECOND, VAL = MASKS


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments), "--no-progress"])


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return make_coco(tmp_path / "coco")


@pytest.fixture
def prepared(coco: Path) -> Path:
    assert run("prepare-coco", coco).exit_code == 0
    return coco


def ids(dataset: CocoFolder, index: int) -> list[int]:
    return (np.flatnonzero(dataset.class_labels(index)) + 1).tolist()


def test_eighty_classes_keep_the_order_of_their_categories() -> None:
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == len(CATEGORY_IDS) == 80
    by_category = dict(zip(CATEGORY_IDS, COCO_CLASSES, strict=True))
    # The first and the last of every run of categories without a gap.
    assert {
        i: by_category[i] for i in (1, 11, 13, 25, 27, 28, 31, 44, 46, 65, 67, 70, 72, 82, 84, 90)
    } == {
        1: "person",
        11: "fire hydrant",
        13: "stop sign",
        25: "giraffe",
        27: "backpack",
        28: "umbrella",
        31: "handbag",
        44: "bottle",
        46: "wine glass",
        65: "bed",
        67: "dining table",
        70: "toilet",
        72: "tv",
        82: "refrigerator",
        84: "book",
        90: "toothbrush",
    }
    assert (COCO_CLASSES[11], COCO_CLASSES[79]) == ("stop sign", "toothbrush")


def test_masks_and_labels_by_hand(prepared: Path) -> None:
    train, val = (open_split(Config(root=prepared), split) for split in ("train", "val"))
    assert train.names == (FIRST, SECOND)  # by their ids, and without the image that shows nothing
    assert val.names == (VAL,)
    for dataset in (train, val):
        assert dataset.class_names == COCO_CLASSES
        for index, image_name in enumerate(dataset.names):
            np.testing.assert_array_equal(dataset.mask(index), MASKS[image_name])
            assert ids(dataset, index) == LABELS[image_name]
            assert dataset.image(index).shape == (HEIGHT, WIDTH, 3)


def test_what_was_stopped_goes_on(prepared: Path) -> None:
    masks = prepared / "masks80/train2014"
    (masks / f"{SECOND}.png").unlink()
    before = (masks / f"{FIRST}.png").stat().st_mtime_ns
    (prepared / "all.txt").write_text(f"{FIRST}\n{SECOND}\n")
    with pytest.raises(ValueError, match=rf"1 of 2 masks are missing: '{SECOND}'\. .*continues"):
        open_split(Config(root=prepared, labels="masks", train_list="all"), "train")
    assert run("prepare-coco", prepared).exit_code == 0
    assert (masks / f"{FIRST}.png").stat().st_mtime_ns == before
    np.testing.assert_array_equal(Image.open(masks / f"{SECOND}.png"), MASKS[SECOND])


def test_another_annotation_file_wants_another_folder(prepared: Path, tmp_path: Path) -> None:
    path = prepared / "annotations/instances_train2014.json"
    path.write_text(json.dumps(content("train2014", TRAIN[:1], 30)))
    digest = open_split(Config(root=prepared), "train").manifest_digest()
    result = run("prepare-coco", prepared, "--split", "train")
    assert result.exit_code == 1
    assert "outputs of other settings: annotations_sha256" in result.output
    assert (
        json.loads((prepared / "masks80/labels_train2014.json").read_text())[SECOND]
        == LABELS[SECOND]
    )
    assert run("prepare-coco", prepared, "--out", tmp_path / "new").exit_code == 0
    other = open_split(Config(root=prepared, mask_folder=tmp_path / "new"), "train")
    assert (other.names, ids(other, 0)) == ((FIRST,), [12])
    assert other.manifest_digest() != digest


def test_missing_images_are_counted_and_named(prepared: Path) -> None:
    (prepared / f"train2014/{SECOND}.jpg").unlink()
    assert f"1 of these images are missing: '{SECOND}'" in run("prepare-coco", prepared).output
    with pytest.raises(ValueError, match=f"1 of 2 images are missing: '{SECOND}'"):
        open_split(Config(root=prepared), "train")


def test_nothing_prepared(coco: Path) -> None:
    with pytest.raises(ValueError, match=r"prepare-coco .*instances_train2014\.json"):
        open_split(Config(root=coco), "train")
    with pytest.raises(ValueError, match=r"set data\.root"):
        open_split(Config(), "train")
    (coco / "annotations/instances_val2014.json").unlink()
    result = run("prepare-coco", coco)
    assert result.exit_code == 1
    assert "annotations_trainval2014.zip" in result.output


def test_lists_and_digest(prepared: Path) -> None:
    (prepared / "val_part.txt").write_text(f"{VAL}\n")
    (prepared / "one.txt").write_text(f"{SECOND}\n")
    config = Config(root=prepared, train_list="one", val_list="val_part")
    assert open_split(config, "val").names == (VAL,)
    one = open_split(config, "train")
    assert one.names == (SECOND,)
    digest = one.manifest_digest()
    assert digest != open_split(Config(root=prepared), "train").manifest_digest()
    changed = np.array(MASKS[SECOND], dtype=np.uint8)
    changed[0, 0] = 1
    Image.fromarray(changed).save(prepared / f"masks80/train2014/{SECOND}.png")
    assert one.manifest_digest() != digest
    with pytest.raises(ValueError, match="lists there: one, val_part"):
        open_split(Config(root=prepared, train_list="two"), "train")


TOO_FEW_RUNS = {"counts": [3, 2], "size": [HEIGHT, WIDTH]}
BAD: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c.pop("categories"), "lists images, annotations, categories"),
    (lambda c: c["categories"].append({"id": 12, "name": "street sign"}), "none of COCO's 80"),
    (lambda c: c["categories"][0].update(id=2), "none of COCO's 80"),
    (lambda c: c["categories"][0].update(id=[1]), "unhashable"),
    (
        lambda c: c["annotations"][0].update(category_id=12),
        "annotation 1: its category 12 is none of COCO's 80",
    ),
    (lambda c: c["annotations"][0].update(iscrowd=2), "annotation 1: .*iscrowd 2"),
    (lambda c: c["annotations"][0].update(image_id=77), "not listed, such as 77"),
    (lambda c: c["annotations"][0].update(segmentation=[]), "polygons or a list of runs"),
    (lambda c: c["annotations"][0].update(segmentation=[[0, 0, 1, 1]]), "at least three points"),
    (lambda c: c["annotations"][0].update(segmentation=[[0, 0, 1, 1, 2, None]]), "annotation 1"),
    (
        lambda c: c["annotations"][0].update(segmentation=[[0, 0, 1, 1, 2, 10**400]]),
        "annotation 1: its polygons are no lists of numbers",
    ),
    (lambda c: c["annotations"][0].update(segmentation=[box(0, 0, 10**9, 1)]), "far outside"),
    (
        lambda c: c["annotations"][0].update(segmentation=[box(0, 0, 6, 5) * 100]),
        "covers the image several times",
    ),
    (lambda c: c["annotations"][0].update(segmentation=TOO_FEW_RUNS), "not of 5 x 6 px"),
    (
        lambda c: c["annotations"][0].update(segmentation={"counts": "abc", "size": [5, 6]}),
        "compressed",
    ),
    (
        lambda c: c["annotations"][0].update(segmentation={"counts": [-1, 31]}),
        "runs as numbers of pixels",
    ),
    (lambda c: c["annotations"][0].pop("segmentation"), "annotations with a segmentation"),
    (lambda c: c["images"][0].update(file_name="../x.jpg"), "with id, file_name"),
    (lambda c: c["images"][0].update(height=10**6, width=10**6), "images of 1 to"),
    (lambda c: c["images"][0].update(id=25), "one id or one name"),
]


@pytest.mark.parametrize(("damage", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_file_that_is_no_annotation_of_coco_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], reason: str
) -> None:
    written = json.loads(json.dumps(content("train2014", TRAIN, 30)))
    damage(written)
    path = tmp_path / "instances_train2014.json"
    path.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=reason):
        read_annotations(path)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "instances_train2014.json"
    for text in ("<html>", "[" * 100_000, '{"images": NaN'):
        path.write_text(text)
        with pytest.raises(ValueError, match="is not JSON"):
            read_annotations(path)


def test_a_crowd_alone_is_no_label(tmp_path: Path) -> None:
    path = tmp_path / "instances_train2014.json"
    path.write_text(
        json.dumps(content("train2014", [annotation(1, 9, 1, [box(0, 0, 3, 5)], crowd=1)], 30))
    )
    (image,) = read_annotations(path).images
    assert image.class_ids() == ()
    np.testing.assert_array_equal(image.mask(), [[255, 255, 255, 0, 0, 0]] * HEIGHT)


def ready_masks(coco: Path, masks: dict[str, object]) -> Path:
    for image_name, mask in masks.items():
        part = image_name.split("_")[1]
        (coco / "ready" / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(mask, dtype=np.uint8)).save(
            coco / f"ready/{part}/{image_name}.png"
        )
    return coco


def categories(mask: object) -> np.ndarray:
    of_class = np.arange(256)
    of_class[1:81] = CATEGORY_IDS
    return of_class[np.array(mask)]


def test_ready_masks(coco: Path) -> None:
    config = Config(root=ready_masks(coco, MASKS), mask_folder=Path("ready"), labels="masks")
    train = open_split(config, "train")
    assert [ids(train, i) for i in range(2)] == [[1, 12], [40, 80]]  # the car is hidden
    digest = train.manifest_digest()
    Image.fromarray(np.full((HEIGHT, WIDTH), 12, np.uint8)).save(
        coco / f"ready/train2014/{FIRST}.png"
    )
    assert open_split(config, "train").manifest_digest() != digest


def test_masks_of_categories_are_refused_and_can_be_renumbered(coco: Path) -> None:
    ready_masks(coco, {image_name: categories(mask) for image_name, mask in MASKS.items()})
    config = Config(root=coco, mask_folder=Path("ready"), labels="masks")
    # 90 is a category and no class.
    with pytest.raises(
        ValueError, match=r"ids \[1, 13, 44, 90\] are COCO's categories.*convert-coco-masks"
    ):
        open_split(config, "train")
    # 27 alone is a backpack of one numbering and a handbag of the other; a label tells.
    with pytest.raises(ValueError, match=r"ids \[27\] could as well be.*prepare-coco"):
        open_split(config, "val")
    (coco / "labels.json").write_text(json.dumps(LABELS))
    with pytest.raises(ValueError, match=r"ids \[27\] are COCO's categories"):
        open_split(config.model_copy(update={"labels": Path("labels.json")}), "val")
    (coco / "labels.json").write_text(json.dumps(LABELS | {VAL: [1]}))
    with pytest.raises(ValueError, match=r"ids \[27\] fit neither these classes nor"):
        open_split(config.model_copy(update={"labels": Path("labels.json")}), "val")
    (coco / "labels.json").write_text(json.dumps(LABELS))
    assert "3 masks written" in run("convert-coco-masks", coco / "ready", coco / "converted").output
    for image_name, mask in MASKS.items():
        part = image_name.split("_")[1]
        np.testing.assert_array_equal(Image.open(coco / f"converted/{part}/{image_name}.png"), mask)
    converted = Config(root=coco, mask_folder=Path("converted"), labels=Path("labels.json"))
    np.testing.assert_array_equal(open_split(converted, "train").mask(0), MASKS[FIRST])
    np.testing.assert_array_equal(open_split(converted, "val").mask(0), MASKS[VAL])


def test_masks_of_other_numberings_are_refused(coco: Path) -> None:
    config = Config(
        root=ready_masks(coco, MASKS | {FIRST: [[12, 90] * 3] * HEIGHT}), mask_folder=Path("ready")
    )
    with pytest.raises(ValueError, match="fit neither these classes nor categories"):
        open_split(config.model_copy(update={"labels": "masks"}), "train")
    result = run("convert-coco-masks", coco / "ready", coco / "converted")
    assert result.exit_code == 1
    assert "[12] are none" in result.output


def test_masks_of_four_channels_are_refused(coco: Path) -> None:
    ready_masks(coco, MASKS)
    Image.new("RGBA", (WIDTH, HEIGHT)).save(coco / f"ready/train2014/{FIRST}.png")
    with pytest.raises(ValueError, match=r"mode is RGBA.*prepare-coco"):
        open_split(Config(root=coco, mask_folder=Path("ready"), labels="masks"), "train")


def test_what_lies_beside_ready_masks_is_said(coco: Path) -> None:
    ready_masks(coco, MASKS)
    (coco / "ready/train2014/._hidden.png").write_bytes(b"")
    (coco / "ready/train2014/scan.webp").write_bytes(b"")
    train = open_split(Config(root=coco, mask_folder=Path("ready"), labels="masks"), "train")
    assert len(train) == 2
    notes = [
        "1 file left out, since images are .png: .webp 1.",
        "hidden files and folders left out, 1: '._hidden.png'.",
    ]
    assert [note.reason for note in train.notes] == notes
    output = run("convert-coco-masks", coco / "ready/val2014", coco / "converted").output
    assert "note" not in output
    (coco / "ready/val2014/scan.webp").write_bytes(b"")
    assert notes[0] in run("convert-coco-masks", coco / "ready/val2014", coco / "converted").output


def test_a_damaged_record_of_prepared_masks_is_refused(prepared: Path) -> None:
    about = prepared / "masks80/train2014/about.json"
    about.write_bytes(about.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"about\.json is not JSON"):
        open_split(Config(root=prepared), "train")


def test_annotations_with_a_byte_order_mark(coco: Path, tmp_path: Path) -> None:
    path = coco / "annotations/instances_train2014.json"
    before = read_annotations(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [image.name for image in read_annotations(path).images] == [
        image.name for image in before.images
    ]
