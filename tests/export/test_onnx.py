"""Exported networks, run by ONNX Runtime and held against torch."""

import json
import re
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession

from tests.export.runs import CLASS_NAMES, STEP, exports
from toco.evaluate.sizes import network_input
from toco.export import onnx as export
from toco.export.onnx import export_onnx
from toco.methods import MethodConfig
from toco.predict.config import InferenceConfig
from toco.predict.inference import class_probabilities
from toco.predict.split_predictions import weights_digest
from toco.train.run_folder import RunFolder
from toco.train.trained import open_trained

PLAIN = InferenceConfig(scales=(1.0,), flip=False, crf=None)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exports(tmp_path_factory)


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (24, 56), (45, 33)])
def test_the_free_network_says_at_any_size_what_torch_says_in_float32(exported, size):
    method = open_trained(exported.small, {"precision": "float32"}).method
    images = np.random.default_rng(1).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    logits, labels = InferenceSession(exported.free).run(["logits", "labels"], {"images": images})
    assert logits.shape == (3, 1 + len(CLASS_NAMES), *size)
    assert labels.dtype == np.uint8
    for image, of_one, label in zip(images, logits, labels, strict=True):
        expected = class_probabilities(method, image, PLAIN, "cpu")
        np.testing.assert_allclose(torch.from_numpy(of_one).softmax(0), expected, atol=1e-5)
        assert (label == of_one.argmax(0)).all()
    assert len(np.unique(labels)) > 1 or size == (8, 8)


def test_the_file_says_what_it_is(exported):
    path = exported.free
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    about = {entry.key.removeprefix("toco."): entry.value for entry in model.metadata_props}
    assert json.loads(about["class_names"]) == ["background", *CLASS_NAMES]
    assert about["run_digest"] == RunFolder(exported.small).digest()
    assert about["recipe"] == "shapes_nano"
    assert int(about["step"]) == STEP
    assert about["weights"] == weights_digest(open_trained(exported.small).method)
    assert json.loads(about["size_px"]) is None
    assert json.loads(about["patch_size_px"]) == 8
    assert json.loads(about["pixel_mean"]) == [0.5, 0.4, 0.3]
    (images,) = model.graph.input
    axes = [axis.dim_param or axis.dim_value for axis in images.type.tensor_type.shape.dim]
    assert axes == ["batch", "height", "width", 3]
    assert "RGB levels 0 to 255" in images.doc_string
    assert [output.name for output in model.graph.output] == ["logits", "labels"]
    assert all(output.doc_string for output in model.graph.output)
    # The exporter notes for every node which line of which file it comes from.
    assert b".py" not in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == ["free.onnx"]


def test_the_verb_says_how_well_the_file_agrees(exported):
    said = exported.said
    match = re.search(
        r"free.onnx: 0\.\d MB. .* differ by at most (\S+) \(the largest is (\S+)\), (\S+)% of", said
    )
    assert match is not None
    difference, largest, agreement = map(float, match.groups())
    assert difference < 1e-4 < largest
    assert agreement == 100
    assert f"toco.run_digest = {RunFolder(exported.small).digest()}" in said


def test_a_network_of_timm_with_cams_at_a_fixed_size(exported):
    session = InferenceSession(exported.out / "fixed.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert about["toco.size_px"] == "48"
    assert [output.name for output in session.get_outputs()] == [
        "logits",
        "labels",
        "cams",
        "class_logits",
    ]
    assert session.get_inputs()[0].shape == ["batch", 48, 48, 3]
    images = np.random.default_rng(1).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    logits, labels, cams, class_logits = session.run(None, {"images": images})
    mean, std = (np.array(json.loads(about[f"toco.pixel_{name}"])) for name in ("mean", "std"))
    normalised = torch.from_numpy(((images / 255 - mean) / std).astype(np.float32)).permute(
        0, 3, 1, 2
    )
    expected = open_trained(exported.tiny).method.predict(normalised, scales=(1.0,), flip=False)
    np.testing.assert_allclose(cams, expected.cams.cam, atol=1e-4)
    np.testing.assert_allclose(class_logits, expected.class_logits, atol=1e-4)
    upsampled = torch.nn.functional.interpolate(
        expected.segmentation_logits, size=(48, 48), mode="bilinear"
    )
    np.testing.assert_allclose(logits, upsampled, atol=1e-4)
    assert (labels == upsampled.argmax(1).numpy()).mean() > 0.999


@pytest.mark.parametrize("size", [(32, 32), (24, 56)])
def test_the_cams_of_a_network_with_a_memory(exported, size):
    method = open_trained(exported.regions).method
    assert method.rca_parts.memory.is_clustered.all()
    images = np.random.default_rng(1).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    cams, class_logits = InferenceSession(exported.out / "regions.onnx").run(
        ["cams", "class_logits"], {"images": images}
    )
    normalised = network_input(torch.from_numpy(images), None)
    expected = method.predict(normalised, scales=(1.0,), flip=False)
    np.testing.assert_allclose(cams, expected.cams.cam, atol=1e-3)
    np.testing.assert_allclose(class_logits, expected.class_logits, atol=1e-5)
    # The centroids are in the file.
    method.rca_parts.memory.centroids.neg_()
    other = method.predict(normalised, scales=(1.0,), flip=False)
    assert np.abs(class_logits - other.class_logits.numpy()).max() > 1e-3


def test_a_wrong_network_is_an_error_and_leaves_no_file(exported, tmp_path, monkeypatch):
    wrong = onnx.load(exported.free)
    weight = next(weight for weight in wrong.graph.initializer if "conv8" in weight.name)
    right = weight.raw_data
    weight.raw_data = (-onnx.numpy_helper.to_array(weight)).tobytes()
    monkeypatch.setattr(export, "_convert", lambda *_: wrong)
    with pytest.raises(
        ValueError,
        match=r"differs from the one of .*: logits by up to .* and \d+\.\d+% of the labels. "
        "No file was written; give the size",
    ):
        export_onnx(exported.small, tmp_path / "wrong.onnx")
    # With a size, another one is no advice.
    with pytest.raises(ValueError, match=r"No file was written; try another version of torch\.$"):
        export_onnx(exported.small, tmp_path / "wrong.onnx", size_px=32)
    weight.raw_data = right
    # A height that was taken for a constant.
    wrong.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 32
    with pytest.raises(
        ValueError,
        match=r"cannot run .* shape \(2, 57, 31, 3\) (.|\n)* give the size that images will",
    ):
        export_onnx(exported.small, tmp_path / "wrong.onnx")
    assert list(tmp_path.iterdir()) == []


class Outputs(export.Segmenter):
    """A network, or a session of ONNX Runtime, with these outputs for every image."""

    outputs = ("logits", "labels", "cams", "class_logits")

    def __init__(self, **outputs):
        torch.nn.Module.__init__(self)
        self.values = [np.asarray(outputs[name], np.float32) for name in self.outputs]

    def __call__(self, images):
        return [torch.from_numpy(value) for value in self.values]

    def run(self, names, inputs):
        return self.values


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        # Each output has its own scale: a tolerance of the logits' 0.5 would pass any CAM.
        ({"logits": [500.4, 1.0], "class_logits": [3.0009]}, []),
        ({"logits": [500.6, 1.0]}, ["logits"]),
        ({"cams": [0.6] * 50}, ["cams"]),
        ({"class_logits": [3.01]}, ["class_logits"]),
        # Rounding that a map with almost no activation magnifies.
        ({"cams": [0.54] + [0.5] * 49}, []),
        ({"logits": [np.nan, 1.0], "cams": [np.nan] * 50}, ["logits", "cams"]),
    ],
)
def test_every_output_is_compared_on_its_own_scale(monkeypatch, changes, wrong):
    right = {"logits": [500.0, 1.0], "labels": [1], "cams": [0.5] * 50, "class_logits": [3.0]}
    session = Outputs(**right | changes)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: session)
    differences, agreement = export._compare(Outputs(**right), b"", [(1, 8, 8)], "")
    assert [item.name for item in differences if not item.is_rounding] == wrong
    assert agreement == 1


def test_what_cannot_be_exported_is_refused_before_anything_is_traced(
    exported, tmp_path, monkeypatch
):
    monkeypatch.setattr(export, "_convert", None)
    with pytest.raises(
        ValueError, match=r"Expected the name of an \.onnx file, got .*network\.pt2"
    ):
        export_onnx(exported.small, tmp_path / "network.pt2")
    for size_px in (36, 0, -8):
        with pytest.raises(
            ValueError,
            match=f"size is {size_px} px; expected a positive multiple of the patch of 8 px",
        ):
            export_onnx(exported.small, tmp_path / "network.onnx", size_px=size_px)
    with monkeypatch.context() as patched:
        patched.setattr(export, "_ONE_SIZE_ONLY", {"vit_nano"})
        with pytest.raises(
            ValueError, match=r"on vit_nano can be exported for one size .* as in --size 32\."
        ):
            export_onnx(exported.small, tmp_path / "network.onnx")
    with monkeypatch.context() as patched:
        patched.setattr(MethodConfig, "has_cams_of_all_classes", lambda _: False)
        with pytest.raises(
            ValueError, match=r"'toco' makes CAMs only of the classes in an image.* without --cams"
        ):
            export_onnx(exported.small, tmp_path / "network.onnx", cams=True)
    with pytest.raises(ValueError, match="holds no run"):
        export_onnx(tmp_path, tmp_path / "network.onnx")
    untrained = tmp_path / "untrained"
    shutil.copytree(exported.small, untrained, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        export_onnx(untrained, tmp_path / "network.onnx")
    assert not (tmp_path / "network.onnx").exists()
