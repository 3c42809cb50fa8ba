import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO

from toco.data.files.images import read_upright
from toco.evaluate.pictures import voc_palette
from toco.predict.coco_json import coco_annotations
from toco.predict.formats import index_png, read_index_png
from toco.predict.image_files import find_images
from toco.predict.overlay import overlay
from toco.predict.predictions import predict
from toco.types import Shard

CLASSES = ("cat", "dog")


@pytest.fixture
def folder(tmp_path):
    """Three images: one of colours, one of greys, one in a subfolder; and
    two files that are none.
    """
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    (root / ".cache").mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(root / "b.png")
    Image.fromarray(rng.integers(0, 256, (5, 7), dtype=np.uint8)).save(
        root / "a.JPG", format="JPEG"
    )
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


@pytest.mark.parametrize("name", ["$x$", "猫", "two\nlines", "\x1b[31mred", "\udcff"])
def test_an_overlay_takes_any_name(name):
    drawn = overlay(np.zeros((4, 300, 3), np.uint8), np.ones((4, 300), np.uint8), [name])
    assert [128, 0, 0] in drawn[4:].reshape(-1, 3).tolist()


def test_coco_annotations_are_read_by_coco_and_decode_to_the_labels(tmp_path):
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 4, (9, 13), dtype=np.uint8), np.zeros((4, 5), dtype=np.uint8)]
    file = tmp_path / "coco.json"
    file.write_text(
        json.dumps(coco_annotations(["sub/a.jpg", "b.png"], labels, ("cat", "dog", "cow")))
    )
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
    assert find_images(
        [folder / "b.png", folder / "sub", folder / "b.png"], max_pixels=100
    ).names == ("b", "c.d")


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
    network = Network()
    predicted = predict(
        network, images, CLASSES, tmp_path / "out", {}, overlay=True, coco_json=images.file_names
    )
    assert [images.names[index] for index in predicted.faults] == ["b", "sub/deep", "notes"]
    for (index, sentence), reason in zip(
        predicted.faults.items(),
        ("cannot be read as", "expected an 8-bit", "cannot be read as"),
        strict=True,
    ):
        assert str(images.paths[index]) in sentence
        assert reason in sentence
    # The others are made, and the JSON is of them.
    assert (network.calls, predicted.num_made, predicted.is_complete) == (2, 2, True)
    written = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [image["file_name"] for image in written["images"]] == ["a.JPG", "sub/c.d.png"]
    assert len(list((tmp_path / "out" / "overlays").rglob("*.png"))) == 2


def test_nothing_is_made_where_no_image_can_be_used(folder, tmp_path):
    images = find_images([folder / "notes.txt"], max_pixels=100)
    predicted = predict(refuse, images, CLASSES, tmp_path / "out", {}, coco_json=images.file_names)
    assert (predicted.num_made, predicted.is_complete, list(predicted.faults)) == (0, True, [0])
    assert not (tmp_path / "out").exists()


def test_what_is_no_image_is_counted_and_links_are_followed(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "b.png").rename(elsewhere / "far.png")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "broken.png").symlink_to(folder / "nowhere.png")
    for name in ("d.webp", "e.WEBP", "README"):
        (folder / name).write_bytes(b"")
    images = find_images([folder], max_pixels=100)
    assert images.file_names == ("a.JPG", "linked/far.png", "sub/c.d.png")
    assert images.left_out == (
        f"{folder}: 4 files of other formats (1 .txt, 2 .webp, 1 without a suffix)",
        f"{folder / 'broken.png'} is a link to nothing",
        f"{folder / 'sub' / 'up'} is a link to a folder that holds the link",
    )
    (elsewhere / "far.png").unlink()
    (elsewhere / "far.webp").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"there is none; .*elsewhere: 1 file of other formats \(1 \.webp\)\."
    ):
        find_images([elsewhere], max_pixels=100)


def test_files_are_turned_upright(tmp_path):
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[0, :, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right side
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    images = find_images([tmp_path], max_pixels=100)
    np.testing.assert_array_equal(images.image(0), np.rot90(pixels, -1))
    predicted = predict(Network(), images, CLASSES, tmp_path / "out", {}, overlay=True)
    assert read_index_png(predicted.labels.output(0)).shape == (6, 4)


def test_a_replaced_picture_is_segmented_again_and_no_other(folder, tmp_path):
    images, out = find_images([folder], max_pixels=100), tmp_path / "out"
    wanted = {"overlay": True, "soft": True, "coco_json": images.file_names}
    predict(Network(), images, CLASSES, out, {}, **wanted)
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    # Of another size, so that neither the label nor the overlay would fit.
    Image.fromarray(np.full((3, 9, 3), (0, 0, 200), dtype=np.uint8)).save(folder / "b.png")
    network = Network()
    predicted = predict(network, find_images([folder], max_pixels=100), CLASSES, out, {}, **wanted)
    assert (network.calls, predicted.num_made) == (1, 1)
    assert (read_index_png(out / "labels" / "b.png") == np.full((3, 9), 2)).all()
    with Image.open(out / "overlays" / "b.png") as drawn:
        image = find_images([folder / "b.png"], max_pixels=100).image(0)
        np.testing.assert_array_equal(
            np.asarray(drawn), overlay(image, np.full((3, 9), 2, np.uint8), CLASSES)
        )
    with np.load(out / "probabilities" / "b.npz", allow_pickle=False) as file:
        assert file["probabilities"].shape == (3, 3, 9)
    sizes = {
        i["file_name"]: (i["height"], i["width"])
        for i in json.loads((out / "coco.json").read_text())["images"]
    }
    assert sizes["b.png"] == (3, 9)
    changed = {
        path.relative_to(out).as_posix()
        for path, content in before.items()
        if path.read_bytes() != content
    }
    assert changed == {"labels/b.png", "overlays/b.png", "probabilities/b.npz", "coco.json"}
    predict(refuse, find_images([folder], max_pixels=100), CLASSES, out, {}, **wanted)


@pytest.mark.parametrize("kept", [0, 30])
def test_cut_outputs_are_made_again(folder, tmp_path, kept):
    images, out = find_images([folder], max_pixels=100), tmp_path / "out"
    wanted = {"overlay": True, "soft": True, "coco_json": images.file_names}
    predict(Network(), images, CLASSES, out, {}, **wanted)
    expected = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    for name in ("labels/a.png", "overlays/b.png", "probabilities/sub/c.d.npz", "coco.json"):
        (out / name).write_bytes((out / name).read_bytes()[:kept])
    network = Network()
    predict(network, images, CLASSES, out, {}, **wanted)
    assert network.calls == 2  # an overlay needs no network
    assert {path: path.read_bytes() for path in expected} == expected


def test_the_same_pictures_in_another_folder_are_not_segmented_again(folder, tmp_path):
    predict(Network(), find_images([folder], max_pixels=100), CLASSES, tmp_path / "out", {})
    moved = folder.rename(tmp_path / "moved")
    again = predict(refuse, find_images([moved], max_pixels=100), CLASSES, tmp_path / "out", {})
    assert (again.num_made, again.faults) == (0, {})


@pytest.mark.parametrize("ask", [lambda: torch.empty(10**15), lambda: np.empty(10**15), "cuda"])
def test_an_image_that_is_too_large_for_the_memory_leaves_the_others(folder, tmp_path, ask):
    def network(image):
        if image.shape[0] == 6:
            if ask == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory")
            ask()
        return Network()(image)

    images = find_images([folder], max_pixels=100)
    predicted = predict(network, images, CLASSES, tmp_path, {})
    assert predicted.num_made == 2
    assert list(predicted.faults) == [1]
    assert predicted.faults[1].startswith(
        "'b' does not fit into the memory. Tiles (--set inference.tile_px=1024)"
    )


def test_an_image_that_cannot_be_decoded_for_want_of_memory_is_named(folder, tmp_path, monkeypatch):
    def decode(path, max_pixels):
        if path.name == "b.png":
            raise MemoryError
        return read_upright(path, max_pixels)

    monkeypatch.setattr("toco.predict.image_files.read_upright", decode)
    predicted = predict(Network(), find_images([folder], max_pixels=100), CLASSES, tmp_path, {})
    assert predicted.faults == {1: "'b' does not fit into the memory."}
    assert predicted.num_made == 2


def test_another_error_of_the_network_is_not_hidden(folder, tmp_path):
    def network(image):
        raise RuntimeError("a fault of the network")

    with pytest.raises(RuntimeError, match="a fault of the network"):
        predict(network, find_images([folder], max_pixels=100), CLASSES, tmp_path, {})


def test_predictions_of_a_folder(folder, tmp_path):
    images, network, out = find_images([folder], max_pixels=100), Network(), tmp_path / "out"
    labels = predict(
        network, images, CLASSES, out, {}, overlay=True, soft=True, coco_json=images.file_names
    ).labels
    assert network.calls == 3
    annotations = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in annotations["images"]] == [
        "a.JPG",
        "b.png",
        "sub/c.d.png",
    ]
    for index, name in enumerate(images.names):
        expected = network(images.image(index))
        label = read_index_png(out / "labels" / f"{name}.png")
        np.testing.assert_array_equal(label, read_index_png(labels.output(index)))
        np.testing.assert_array_equal(label, expected.argmax(0))
        with np.load(out / "probabilities" / f"{name}.npz", allow_pickle=False) as file:
            assert list(file) == ["probabilities"]
            np.testing.assert_array_equal(file["probabilities"], expected.half().numpy())
        with Image.open(out / "overlays" / f"{name}.png") as drawn:
            np.testing.assert_array_equal(
                np.asarray(drawn), overlay(images.image(index), label, CLASSES)
            )
        decoded = np.zeros_like(label)
        for annotation in annotations["annotations"]:
            if annotation["image_id"] == index + 1:
                decoded += (
                    run_lengths.decode(annotation["segmentation"]) * annotation["category_id"]
                )
        np.testing.assert_array_equal(decoded, label)
    # The grey image is as likely everything: the first class, which is the background.
    assert not read_index_png(labels.output(0)).any()


def test_predictions_go_on_and_overlays_and_json_need_no_network(folder, tmp_path):
    images, out = find_images([folder], max_pixels=100), tmp_path / "out"
    labels = predict(Network(), images, CLASSES, out, {}).labels
    assert sorted(path.name for path in out.iterdir()) == ["labels"]
    labels.output(1).unlink()
    network = Network()
    predict(network, images, CLASSES, out, {})
    assert network.calls == 1
    predict(refuse, images, CLASSES, out, {}, overlay=True, coco_json=images.file_names)
    assert len(list((out / "overlays").rglob("*.png"))) == 3
    assert (out / "coco.json").is_file()
    with pytest.raises(ValueError, match="outputs of other settings: crf was None and is True"):
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


def test_a_process_knows_whether_others_are_at_work_though_an_image_is_broken(folder, tmp_path):
    (folder / "b.png").write_bytes(b"")
    images, out = find_images([folder], max_pixels=100), tmp_path / "out"
    first = predict(Network(), images, CLASSES, out, {}, Shard(1, 2), coco_json=images.file_names)
    assert (first.is_complete, list(first.faults)) == (False, [1])
    assert not (out / "coco.json").exists()
    last = predict(Network(), images, CLASSES, out, {}, Shard(0, 2), coco_json=images.file_names)
    assert (last.is_complete, last.num_made, list(last.faults)) == (True, 2, [1])
    assert (out / "coco.json").is_file()


def _png_of_16_bits():
    content = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), dtype=np.uint16)).save(content, format="PNG")
    return content.getvalue()
