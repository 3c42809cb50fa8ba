import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO

from toco.evaluate.outputs import check_readable, find_images, predict
from toco.evaluate.outputs.coco_json import coco_annotations
from toco.evaluate.outputs.formats import index_png, read_index_png
from toco.evaluate.outputs.overlay import overlay
from toco.evaluate.pictures import voc_palette
from toco.types import Shard

CLASSES = ("cat", "dog")


@pytest.fixture
def folder(tmp_path):
    """Three images: one of colours, one of greys, one in a subfolder; and two files that are none."""
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    (root / ".cache").mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(root / "b.png")
    Image.fromarray(rng.integers(0, 256, (5, 7), dtype=np.uint8)).save(root / "a.JPG", format="JPEG")
    Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(root / "sub" / "c.d.png")
    (root / "notes.txt").write_text("no image")
    (root / ".cache" / "e.png").write_bytes(b"hidden")
    return root


class Network:
    """Red, green and blue are the probabilities of the background and of two classes."""

    def __init__(self):
        self.calls = 0

    def __call__(self, image):
        self.calls += 1
        return torch.tensor(image).permute(2, 0, 1).double().softmax(0).float()


def refuse(image):
    raise AssertionError("There is nothing left to predict.")


def test_an_index_png_holds_class_ids_and_shows_the_colours_of_voc(tmp_path):
    label = np.array([[0, 1, 20], [255, 2, 0]], dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(index_png(label))
    np.testing.assert_array_equal(read_index_png(tmp_path / "a.png"), label)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), label)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), voc_palette()[label])


def test_an_overlay_mixes_colours_where_there_is_a_class_and_names_those_that_there_are():
    image = np.full((2, 300, 3), (100, 50, 11), dtype=np.uint8)
    label = np.zeros((2, 300), dtype=np.uint8)
    label[0, 0] = 1
    drawn = overlay(image, label, CLASSES)
    # 0.6 * 128 + 0.4 * 100, 0.4 * 50, 0.4 * 11
    assert drawn[0, 0].tolist() == [117, 20, 4]
    np.testing.assert_array_equal(drawn[:2].reshape(-1, 3)[1:], image.reshape(-1, 3)[1:])
    legend = drawn[2:].reshape(-1, 3).tolist()
    assert [128, 0, 0] in legend
    assert [0, 128, 0] not in legend
    label[0, 1] = 2
    assert [0, 128, 0] in overlay(image, label, CLASSES)[2:].reshape(-1, 3).tolist()


def test_an_overlay_of_a_small_image_is_as_wide_as_its_legend():
    image = np.full((4, 3, 3), 7, dtype=np.uint8)
    drawn = overlay(image, np.full((4, 3), 2, dtype=np.uint8), CLASSES)
    assert drawn.shape[1] > 3
    # Of green, 0.6 * 128 + 0.4 * 7.
    assert (drawn[:4, :3] == [3, 80, 3]).all()
    assert (drawn[:4, 3:] == 255).all()


def test_coco_annotations_are_read_by_coco_and_decode_to_the_labels(tmp_path):
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 4, (9, 13), dtype=np.uint8), np.zeros((4, 5), dtype=np.uint8)]
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(coco_annotations(["sub/a.jpg", "b.png"], labels, ("cat", "dog", "cow"))))
    coco = COCO(file)
    assert {category["id"]: category["name"] for category in coco.dataset["categories"]} == {
        1: "cat",
        2: "dog",
        3: "cow",
    }
    assert coco.imgs[1] == {"id": 1, "file_name": "sub/a.jpg", "height": 9, "width": 13}
    decoded = np.zeros((9, 13), dtype=np.uint8)
    for annotation in coco.imgToAnns[1]:
        mask = coco.annToMask(annotation)
        decoded[mask == 1] = annotation["category_id"]
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == run_lengths.toBbox(annotation["segmentation"]).tolist()
    np.testing.assert_array_equal(decoded, labels[0])
    assert coco.imgToAnns[2] == []
    assert len({annotation["id"] for annotation in coco.dataset["annotations"]}) == 3


def test_images_are_found_in_folders_whatever_the_case_of_their_suffix(folder):
    images = find_images([folder], max_pixels=100)
    assert images.names == ("a", "b", "sub/c.d")
    assert images.file_names == ("a.JPG", "b.png", "sub/c.d.png")
    grey = images.image(0)
    assert grey.shape == (5, 7, 3)
    assert (grey == grey[..., :1]).all()
    assert find_images([folder / "b.png", folder / "sub", folder / "b.png"], max_pixels=100).names == ("b", "c.d")


def test_images_that_cannot_be_used_are_refused_in_sentences(folder, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: there is no such file or folder"):
        find_images([folder / "nowhere"], max_pixels=100)
    (folder / ".cache" / "e.png").unlink()
    with pytest.raises(ValueError, match=r"\.cache: expected images"):
        find_images([folder / ".cache"], max_pixels=100)
    (folder / "b.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.jpg and .*b\.png would both be 'b' in the output"):
        find_images([folder], max_pixels=100)
    (folder / "b.png").unlink()
    (folder / "sub" / "deep.png").write_bytes(_png_of_16_bits())
    images = find_images([folder, folder / "notes.txt"], max_pixels=100)
    with pytest.raises(ValueError, match=r"3 of 5 images cannot be used.*b\.jpg.*deep\.png.*notes\.txt"):
        check_readable(images.image, images.names, {tmp_path / "out": ".png"})
    network = Network()
    with pytest.raises(ValueError, match="cannot be used"):
        predict(network, images, CLASSES, tmp_path / "out", {})
    assert network.calls == 0
    assert not (tmp_path / "out").exists()


def test_predictions_of_a_folder(folder, tmp_path):
    images, network, out = find_images([folder], max_pixels=100), Network(), tmp_path / "out"
    labels = predict(network, images, CLASSES, out, {}, overlay=True, soft=True, coco_json=images.file_names)
    assert network.calls == 3
    annotations = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in annotations["images"]] == ["a.JPG", "b.png", "sub/c.d.png"]
    for index, name in enumerate(images.names):
        expected = network(images.image(index))
        label = read_index_png(out / "labels" / f"{name}.png")
        np.testing.assert_array_equal(label, read_index_png(labels.output(index)))
        np.testing.assert_array_equal(label, expected.argmax(0))
        with np.load(out / "probabilities" / f"{name}.npz", allow_pickle=False) as file:
            assert list(file) == ["probabilities"]
            np.testing.assert_array_equal(file["probabilities"], expected.half().numpy())
        with Image.open(out / "overlays" / f"{name}.png") as drawn:
            np.testing.assert_array_equal(np.asarray(drawn), overlay(images.image(index), label, CLASSES))
        decoded = np.zeros_like(label)
        for annotation in annotations["annotations"]:
            if annotation["image_id"] == index + 1:
                decoded += run_lengths.decode(annotation["segmentation"]) * annotation["category_id"]
        np.testing.assert_array_equal(decoded, label)
    # The grey image is as likely everything: the first class, which is the background.
    assert not read_index_png(labels.output(0)).any()


def test_predictions_go_on_and_overlays_and_json_need_no_network(folder, tmp_path):
    images, out = find_images([folder], max_pixels=100), tmp_path / "out"
    labels = predict(Network(), images, CLASSES, out, {})
    assert sorted(path.name for path in out.iterdir()) == ["labels"]
    labels.output(1).unlink()
    network = Network()
    predict(network, images, CLASSES, out, {})
    assert network.calls == 1
    predict(refuse, images, CLASSES, out, {}, overlay=True, coco_json=images.file_names)
    assert len(list((out / "overlays").rglob("*.png"))) == 3
    assert (out / "coco.json").is_file()
    with pytest.raises(ValueError, match="made in another way: crf was None and is True"):
        predict(refuse, images, CLASSES, out, {"crf": True})


def test_two_processes_predict_what_one_does(folder, tmp_path):
    images = find_images([folder], max_pixels=100)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    settings = {"overlay": True, "soft": True, "coco_json": images.file_names}
    predict(Network(), images, CLASSES, whole, {}, **settings)
    predict(Network(), images, CLASSES, halves, {}, Shard(1, 2), **settings)
    assert not (halves / "coco.json").exists()
    assert [path.name for path in (halves / "labels").rglob("*.png")] == ["b.png"]
    predict(Network(), images, CLASSES, halves, {}, Shard(0, 2), **settings)
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(files) == 3 * 4 + 1
    assert all((whole / file).read_bytes() == (halves / file).read_bytes() for file in files)


def _png_of_16_bits():
    content = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), dtype=np.uint16)).save(content, format="PNG")
    return content.getvalue()
