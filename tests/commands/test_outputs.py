"""The verbs that write one file an image, as a user calls them, on a run of one step."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from toco.__main__ import main
from toco.config import replace
from toco.data import voc
from toco.data.files.images import read_image
from toco.evaluate.sizes import network_input
from toco.predict.formats import read_index_png
from toco.predict.inference import class_probabilities
from toco.train import checkpoint
from toco.train.loop import train
from toco.train.trained import open_trained

NO_CRF = ("--set", "inference.crf=null", "--set", "inference.scales=[1]")


@pytest.fixture(scope="module")
def run_dir(tiny_config, tmp_path_factory):
    changes = {"num_steps": 1, "evaluate_every": 1, "optim.warmup_steps": 0, "device": "cpu"}
    as_they_are = {"evaluate.size_px": None, "evaluate.cam_flip": True, "evaluate.max_images": 1}
    config = replace(tiny_config, changes | as_they_are)
    path = tmp_path_factory.mktemp("outputs") / "run"
    train(config, path, progress=False)
    return path


def call(*words, code=0):
    result = CliRunner().invoke(main, [*map(str, words), "--no-progress"])
    assert result.exit_code == code, result.output
    return result.output


def files_under(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_predict_files_and_folders(run_dir, data_root, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    (images / "sub").mkdir(parents=True)
    shutil.copy(data_root / "JPEGImages" / "image00.png", images / "sub" / "colour.png")
    with Image.open(images / "sub" / "colour.png") as image:
        image.convert("L").save(images / "grey.jpg")
    words = ("predict", run_dir, images, "--out", out, "--overlay", "--soft", "--coco-json")
    assert f"2 of 2 images have a label: {out / 'labels'}" in call(*words, *NO_CRF)
    trained = open_trained(run_dir, {"inference.crf": None, "inference.scales": [1]})
    for name, file in (("grey", "grey.jpg"), ("sub/colour", "sub/colour.png")):
        image = read_image(images / file, max_pixels=10_000)
        expected = class_probabilities(
            trained.method, image, trained.config.inference, "cpu"
        ).numpy()
        np.testing.assert_array_equal(
            read_index_png(out / "labels" / f"{name}.png"), expected.argmax(0)
        )
        with np.load(out / "probabilities" / f"{name}.npz", allow_pickle=False) as arrays:
            np.testing.assert_array_equal(arrays["probabilities"], expected.astype(np.float16))
        assert (out / "overlays" / f"{name}.png").is_file()
    annotations = json.loads((out / "coco.json").read_text())
    assert [category["name"] for category in annotations["categories"]] == ["red", "blue"]
    assert [image["file_name"] for image in annotations["images"]] == ["grey.jpg", "sub/colour.png"]
    assert "scales was" not in call(*words, *NO_CRF)
    assert "outputs of other settings: inference." in call(
        *words, "--set", "inference.crf=null", code=1
    )


def test_predict_with_a_crf_and_in_tiles(run_dir, data_root, tmp_path):
    image = data_root / "JPEGImages" / "image01.png"
    tiles = (*NO_CRF, "--set", "inference.tile_px=32", "--set", "inference.tile_overlap_px=8")
    for name, changes in {"crf": ("--set", "inference.scales=[1]"), "tiles": tiles}.items():
        call("predict", run_dir, image, "--out", tmp_path / name, "--soft", *changes)
        with np.load(
            tmp_path / name / "probabilities" / "image01.npz", allow_pickle=False
        ) as arrays:
            probabilities = arrays["probabilities"]
        assert probabilities.shape == (3, 40, 48)
        np.testing.assert_allclose(probabilities.astype(np.float32).sum(0), 1, atol=2e-3)


def test_predict_a_split_by_two_processes(run_dir, tmp_path, monkeypatch):
    settings = ("--split", "val", "--coco-json", *NO_CRF)
    call("predict", run_dir, "--out", tmp_path / "whole", *settings)
    place = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }
    outputs = []
    for rank in ("0", "1"):
        for name, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)
        outputs.append(call("predict", run_dir, "--out", tmp_path / "parts", *settings))
    assert "2 of 4 images have a label" in outputs[0]
    assert "coco.json is written by the last process" in outputs[0]
    assert "4 of 4 images have a label" in outputs[1]
    assert files_under(tmp_path / "whole") == files_under(tmp_path / "parts")


def test_predict_refuses_what_cannot_work_before_it_starts(run_dir, data_root, tmp_path):
    out = tmp_path / "out"
    image = data_root / "JPEGImages" / "image00.png"
    assert "Name the images" in call("predict", run_dir, "--out", out, code=2)
    assert "Name the images" in call(
        "predict", run_dir, image, "--split", "val", "--out", out, code=2
    )
    inside = data_root / "JPEGImages" / "out"
    assert "lies in a folder of INPUT" in call(
        "predict", run_dir, inside.parent, "--out", inside, code=2
    )
    assert not inside.exists()
    assert "--set data.max_pixels=NUMBER" in call(
        "predict", run_dir, "--split", "val", "--max-pixels", 100, "--out", out, code=2
    )
    small = tmp_path / "small.png"
    Image.new("RGB", (40, 9)).save(small)
    said = call(
        "predict", run_dir, small, "--out", out, "--set", "inference.scales=[1,0.5]", code=1
    )
    assert (
        "'small': expected sides of at least 16 px, a patch at the smallest of inference.scales"
        in said
    )
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:-200])
    assert "expected at most 100 pixels" in call(
        "predict", run_dir, image, "--max-pixels", 100, "--out", out, code=1
    )
    assert not out.exists()
    said = call("predict", run_dir, image, broken, "--out", out, *NO_CRF, code=1)
    assert f"1 of 2 images have a label: {out / 'labels'} (1 made now)" in said
    assert "1 of 2 images cannot be segmented:" in said
    assert "broken.png: cannot be decoded" in said
    said = call("predict", run_dir, out / "labels", "--out", out, *NO_CRF, code=2)
    assert "has images of INPUT" in said


def test_more_files_join_the_predictions_and_another_picture_of_the_same_name_takes_its_place(
    run_dir, data_root, tmp_path
):
    first, second = (data_root / "JPEGImages" / f"image0{i}.png" for i in range(2))
    words = ("--out", tmp_path / "out", *NO_CRF)
    assert "1 of 1 images have a label" in call("predict", run_dir, first, *words)
    assert "1 of 1 images have a label" in call("predict", run_dir, second, *words)
    labels = files_under(tmp_path / "out" / "labels")
    assert len(labels) == 3
    other = shutil.copy(second, tmp_path / "image00.png")
    assert "(1 made now)" in call("predict", run_dir, other, *words)
    now = files_under(tmp_path / "out" / "labels")
    # The bytes of the input decide, not its name.
    assert (
        now["image00.png"] == now["image01.png"] == labels["image01.png"] != labels["image00.png"]
    )


def test_predict_says_what_it_leaves_out(run_dir, data_root, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(data_root / "JPEGImages" / "image00.png", images)
    (images / "loop").symlink_to(images)
    (images / "a.webp").write_bytes(b"")
    said = call("predict", run_dir, images, "--out", tmp_path / "out", *NO_CRF)
    assert f"Left out: {images}: 1 file of other formats (1 .webp).\n" in said
    assert f"Left out: {images / 'loop'} is a link to a folder that holds the link.\n" in said
    assert "1 of 1 images have a label" in said


def test_images_of_a_split_stay_as_they_are_stored_with_a_note(run_dir, data_root, tmp_path):
    words = ("predict", run_dir, "--split", "val", *NO_CRF)
    assert "EXIF" not in call(*words, "--out", tmp_path / "before")
    shutil.copytree(data_root, tmp_path / "data")
    for name in ("image12", "image13"):
        file = tmp_path / "data" / "JPEGImages" / f"{name}.png"
        exif = Image.Exif()
        exif[0x0112] = 6
        with Image.open(file) as image:
            image.load()
        image.save(file, exif=exif)
    said = call(*words, "--out", tmp_path / "after", "--set", f"data.root={tmp_path / 'data'}")
    assert (
        "Note: 2 of 4 images have an EXIF orientation, which is ignored: the masks of a data set "
        "refer to" in said
    )
    for name in ("image12", "image13"):
        before, after = (
            read_index_png(tmp_path / out / "labels" / f"{name}.png") for out in ("before", "after")
        )
        np.testing.assert_array_equal(before, after)


def test_a_second_call_runs_no_network(run_dir, tmp_path, monkeypatch):
    calls = [
        (
            "predict",
            run_dir,
            "--split",
            "val",
            "--overlay",
            "--soft",
            "--out",
            tmp_path / "predicted",
            *NO_CRF,
        ),
        ("test", run_dir, "--out", tmp_path / "tested", *NO_CRF),
        ("export-cams", run_dir, "--split", "val", "--out", tmp_path / "cams"),
        ("export-pseudo-labels", run_dir, "--split", "val", "--out", tmp_path / "labels"),
    ]
    for words in calls:
        call(*words)
    before = files_under(tmp_path)

    def refuse(*_, **__):
        raise AssertionError("There is nothing left to do for the network.")

    monkeypatch.setattr("toco.methods.toco.ToCo.segmentation_logits", refuse)
    monkeypatch.setattr("toco.methods.toco.ToCo.cams", refuse)
    for words in calls:
        call(*words)
    assert files_under(tmp_path) == before


def test_predictions_of_another_checkpoint_are_not_mixed(run_dir, data_root, tmp_path):
    image = data_root / "JPEGImages" / "image00.png"
    words = ("--out", tmp_path / "out", *NO_CRF)
    call("predict", run_dir, image, *words)
    copied = shutil.copytree(run_dir, tmp_path / "a moved run")
    assert "(0 made now)" in call("predict", copied, image, *words)
    trained = open_trained(run_dir)
    with torch.no_grad():
        next(trained.method.parameters()).add_(1)
    checkpoint.save_model(copied / "checkpoints", trained.step, trained.digest, trained.method)
    assert "outputs of other settings: weights was" in call(
        "predict", copied, image, *words, code=1
    )


def test_export_cams(run_dir, tmp_path):
    out = tmp_path / "cams"
    assert "12 of 12 images have CAMs" in call(
        "export-cams", run_dir, "--out", out, "--dtype", "float16"
    )
    trained = open_trained(run_dir)
    dataset = voc.open_split(trained.config.data, "train")
    for index, name in enumerate(dataset.names):
        cams = trained.method.cams(
            network_input(torch.tensor(dataset.image(index))[None], None), (1.0,), True
        )
        with np.load(out / f"{name}.npz", allow_pickle=False) as arrays:
            keys = arrays["keys"]
            assert keys.tolist() == [index % 2]
            np.testing.assert_allclose(arrays["high_res"], cams.cam[0, keys].numpy(), atol=1e-3)
            np.testing.assert_allclose(
                arrays["aux_high_res"], cams.further["aux_cam"][0, keys].numpy(), atol=1e-3
            )
    assert "dtype was 'float16' and is 'float32'" in call(
        "export-cams", run_dir, "--out", out, code=1
    )


def test_export_pseudo_labels(run_dir, tmp_path):
    out = tmp_path / "par"
    said = call("export-pseudo-labels", run_dir, "--split", "val", "--out", out)
    assert "4 of 4 images have a pseudo label" in said
    assert "mIoU of the pseudo labels" in said
    assert "images with a mask: 4" in said
    trained = open_trained(run_dir)
    dataset = voc.open_split(trained.config.data, "val")
    for index, name in enumerate(dataset.names):
        images = network_input(torch.tensor(dataset.image(index))[None], None)
        expected = trained.method.pseudo_labels(
            images, torch.from_numpy(dataset.class_labels(index))[None]
        )
        np.testing.assert_array_equal(read_index_png(out / f"{name}.png"), expected[0].numpy())
    words = ("export-pseudo-labels", run_dir, "--split", "val", "--out")
    crf = ("--refine", "par+crf", "--crf", "bilateral_sigma_xy=9", "--threshold", 0.4)
    assert " 0.00 % of the pixels are uncertain" in call(*words, tmp_path / "crf", *crf)
    assert (
        json.loads((tmp_path / "crf" / "about.json").read_text())["crf"]["bilateral_sigma_xy"] == 9
    )
    assert "--crf changes a CRF, but --refine none has none" in call(
        *words, out, "--refine", "none", "--crf", "iterations=1", code=2
    )
    assert "outputs of other settings: par was {" in call(*words, out, "--refine", "none", code=1)


def test_outputs_of_images_of_a_split_that_changed_are_made_again(run_dir, data_root, tmp_path):
    other = tmp_path / "data"
    shutil.copytree(data_root, other)
    calls = {
        "cams": ("export-cams", run_dir, "--split", "val", "--out", tmp_path / "cams"),
        "labels": ("export-pseudo-labels", run_dir, "--split", "val", "--out", tmp_path / "labels"),
        "predicted": (
            "predict",
            run_dir,
            "--split",
            "val",
            "--soft",
            "--out",
            tmp_path / "predicted",
            *NO_CRF,
        ),
        "tested": ("test", run_dir, "--out", tmp_path / "tested", *NO_CRF),
    }
    for words in calls.values():
        call(*words, "--set", f"data.root={data_root}")
    before = files_under(tmp_path)
    with Image.open(other / "JPEGImages" / "image12.png") as image:
        turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # Of the same size in bytes, which a digest of sizes would not notice.
    size = (other / "JPEGImages" / "image12.png").stat().st_size
    turned.save(other / "JPEGImages" / "image12.png")
    with (other / "JPEGImages" / "image12.png").open("ab") as file:
        file.write(bytes(max(size - file.tell(), 0)))
    for words in calls.values():
        call(*words, "--set", f"data.root={other}")
    now = files_under(tmp_path)
    changed = {name for name in before if name.split("/")[0] in calls and now[name] != before[name]}
    assert {"cams/image12.npz", "labels/image12.png", "predicted/labels/image12.png"} <= changed
    assert "tested/predictions/image12.png" in changed
    assert not [name for name in changed if "image" in name and "image12" not in name]


RCA = {
    "method.name": "rca",
    "method.loss_group_size": 2,
    "method.cam_scales": [1.0],
    "method.decoder_width": 8,
    "method.region_memory.slots": 4,
    "method.region_memory.start": "noise",
}


@pytest.mark.parametrize(
    ("changes", "has_decoder"),
    [
        ({"method.class_maps": "linear", "method.segmentation.weight": 0.1}, True),
        ({"method.class_maps": "convs", "method.segmentation.weight": 0}, False),
    ],
    ids=["decoder", "convolutions"],
)
def test_verbs_of_a_run_of_rca(tiny_config, tmp_path, changes, has_decoder):
    steps = {"num_steps": 1, "evaluate_every": 1, "optim.warmup_steps": 0, "device": "cpu"}
    run_dir = tmp_path / "run"
    train(replace(tiny_config, RCA | steps | changes), run_dir, progress=False)
    assert "auxiliary CAM IoU" in call("evaluate", run_dir, "--out", tmp_path / "evaluated")
    out = ("--split", "val", "--out")
    assert "4 of 4 images have CAMs" in call("export-cams", run_dir, *out, tmp_path / "cams")
    with np.load(next((tmp_path / "cams").glob("*.npz")), allow_pickle=False) as arrays:
        assert {"high_res", "aux_high_res"} <= set(arrays)
    said = call("export-pseudo-labels", run_dir, *out, tmp_path / "labels")
    assert "4 of 4 images have a pseudo label" in said
    code = 0 if has_decoder else 1
    answers = [
        call("predict", run_dir, *out, tmp_path / "predicted", *NO_CRF, code=code),
        call("test", run_dir, "--out", tmp_path / "tested", *NO_CRF, code=code),
    ]
    for said in answers:
        assert ("The method 'rca' of this run has no decoder" in said) == (not has_decoder)
    said = CliRunner().invoke(main, ["export-official", str(run_dir), str(tmp_path / "file.pth")])
    assert said.exit_code == 1
    assert "computes ToCo and nothing else; the method of this run is 'rca'" in said.output
    assert not (tmp_path / "file.pth").exists()


def test_a_data_set_of_other_classes_is_refused(run_dir, data_root, tmp_path):
    other = tmp_path / "data"
    shutil.copytree(data_root, other)
    (other / "classes.txt").write_text("red\ngreen\n")
    said = call(
        "export-cams", run_dir, "--out", tmp_path / "out", "--set", f"data.root={other}", code=1
    )
    assert "trained for the classes red, blue, but the data set has red, green" in said
