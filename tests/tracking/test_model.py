"""A network in MLflow's registry: logged, registered, loaded and asked."""

import json
import shutil
import subprocess
import sys
from io import BytesIO

import numpy as np
import onnx
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.export.runs import CLASS_NAMES, STEP, exports
from toco.__main__ import main
from toco.export.onnx import Exported
from toco.predict.config import InferenceConfig
from toco.predict.inference import class_probabilities
from toco.tracking import open_store, track_run
from toco.train.trained import open_trained

EXPERIMENT = "networks"
PLAIN = InferenceConfig(scales=(1.0,), flip=False, crf=None)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exports(tmp_path_factory)


@pytest.fixture
def register(exported, sqlite_uri, monkeypatch):
    """The verb, with a network that is exported already."""

    def export_onnx(run_dir, path):
        assert run_dir == exported.small
        shutil.copy(exported.free, path)
        metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        return Exported(path, path.stat().st_size, STEP, 0.0, 1.0, 1.0, metadata)

    def call(*options):
        options = [*options, "--tracking-uri", sqlite_uri, "--experiment", EXPERIMENT]
        return CliRunner().invoke(main, ["register", str(exported.small), *options])

    monkeypatch.setattr("toco.export.onnx.export_onnx", export_onnx)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri)
    return call


def png(image):
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_registered_network_predicts_what_the_run_does(register, exported, sqlite_uri):
    tracked = track_run(exported.small, open_store(sqlite_uri, EXPERIMENT))
    said = register("--name", "toco-tiny")
    assert said.exit_code == 0, said.output
    assert f"is MLflow run {tracked}, http://127.0.0.1:5000/#/experiments/" in said.output
    assert "; its network is models:/toco-tiny/1" in said.output
    from mlflow import pyfunc

    model = pyfunc.load_model("models:/toco-tiny/1")
    assert [column.name for column in model.metadata.signature.inputs] == ["image"]
    assert [column.name for column in model.metadata.signature.outputs] == ["labels", "classes"]
    method = open_trained(exported.small, {"precision": "float32"}).method
    names = ["background", *CLASS_NAMES]
    noise = np.random.default_rng(0).integers(0, 256, (37, 45, 3), dtype=np.uint8)
    asked = pd.concat(
        [model.input_example, pd.DataFrame({"image": [png(noise)]})], ignore_index=True
    )
    answer = model.predict(asked)
    for content, labels, classes in zip(
        asked["image"], answer["labels"], answer["classes"], strict=True
    ):
        image = np.asarray(Image.open(BytesIO(content)))
        expected = class_probabilities(method, image, PLAIN, "cpu").argmax(0).numpy()
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected)
        assert classes == [names[label] for label in np.unique(expected)]
    assert answer["labels"][1].shape == (37, 45)

    client = open_store(sqlite_uri, EXPERIMENT).client
    version = client.get_model_version("toco-tiny", "1")
    assert version.run_id == tracked
    assert json.loads(version.tags["toco.class_names"]) == names
    (output,) = client.get_run(tracked).outputs.model_outputs
    assert output.step == STEP
    logged = client.get_logged_model(output.model_id)
    assert logged.artifact_location == version.source
    assert logged.params["toco.step"] == str(STEP)

    assert "models:/toco-tiny/2" in register("--name", "toco-tiny").output


def test_a_logged_network_needs_neither_this_library_nor_torch_nor_pickle(
    register, sqlite_uri, tmp_path
):
    said = register()
    assert said.exit_code == 0, said.output
    client = open_store(sqlite_uri, EXPERIMENT).client
    uri = said.output.split()[-1]
    model_id = uri.removeprefix("models:/")
    logged = client.get_logged_model(model_id)
    assert logged.status == "READY"
    assert not [
        version
        for version in client.search_model_versions()
        if version.source == logged.artifact_location
    ]
    from mlflow.artifacts import download_artifacts

    folder = download_artifacts(uri, dst_path=str(tmp_path / "model"))
    files = {
        str(path.relative_to(folder)) for path in (tmp_path / "model").rglob("*") if path.is_file()
    }
    assert {"MLmodel", "_onnx_model.py", "artifacts/network.onnx", "input_example.json"} <= files
    assert not [file for file in files if file.endswith(".pkl")]
    requirements = (tmp_path / "model" / "requirements.txt").read_text().split()
    assert [requirement.split("==")[0] for requirement in requirements] == [
        "mlflow",
        "numpy",
        "onnxruntime",
        "pandas",
        "pillow",
    ]
    script = (
        "import sys; from mlflow import pyfunc; model = pyfunc.load_model(sys.argv[1]); "
        "print(model.predict(model.input_example)['labels'][0].shape, 'toco' in sys.modules, "
        "'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, folder], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "(64, 96) False False", done.stderr


def test_what_is_no_image_is_refused(exported, monkeypatch):
    from mlflow.pyfunc import PythonModelContext

    from toco.tracking import _onnx_model
    from toco.tracking._onnx_model import OnnxSegmenter

    model = OnnxSegmenter()
    context = PythonModelContext({"network": str(exported.free)}, None)
    model.load_context(context)
    with pytest.raises(ValueError, match="Expected the content of a JPEG or PNG file"):
        model.predict(context, pd.DataFrame({"image": [b"GIF89a"]}))
    with pytest.raises(
        ValueError, match=r"The image has \(9, 7\) px; expected 8 px or more on each side"
    ):
        model.predict(context, pd.DataFrame({"image": [png(np.zeros((7, 9, 3), np.uint8))]}))
    with pytest.raises(ValueError, match="has the mode I;16; expected one of 8 bits: RGB, L"):
        model.predict(context, pd.DataFrame({"image": [png(np.zeros((8, 8), np.uint16))]}))
    monkeypatch.setattr(_onnx_model, "_MAX_PIXELS", 80)
    with pytest.raises(ValueError, match=r"The image has \(9, 9\) px; expected 80 pixels or fewer"):
        model.predict(context, pd.DataFrame({"image": [png(np.zeros((9, 9, 3), np.uint8))]}))


def test_what_mlflow_does_not_take_is_a_sentence(register):
    said = register("--name", "a/b")
    assert said.exit_code == 1
    assert "mlflow.db failed: Invalid " in said.output


def test_a_wrong_address_is_heard_of_before_the_export(exported, monkeypatch):
    monkeypatch.setattr("toco.export.onnx.export_onnx", None)
    said = CliRunner().invoke(main, ["register", str(exported.small), "--tracking-uri", "mlruns"])
    assert "neither sqlite:///PATH nor http" in said.output
