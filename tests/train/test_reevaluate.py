import json
import shutil

import pytest

from toco.config import digest, replace
from toco.train.loop import train
from toco.train.reevaluate import reevaluate
from toco.train.run_folder import RunFolder


@pytest.fixture(scope="module")
def averaging(config):
    return replace(config, {"evaluate.average_last": 2})


@pytest.fixture(scope="module")
def source(averaging, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "source"
    train(averaging, run_dir, progress=False)
    return run_dir


@pytest.fixture(scope="module")
def trained_with(averaging, tmp_path_factory):
    """The run folder of a training of its own with these changes."""

    def run(changes):
        run_dir = tmp_path_factory.mktemp("runs") / "afresh"
        train(replace(averaging, changes), run_dir, progress=False)
        return run_dir

    return run


def values(run_dir, kind):
    return [
        (row["step"], {name: value for name, value in row["values"].items() if name != "train/step_time_s"})
        for row in RunFolder(run_dir).metrics()
        if row["kind"] == kind
    ]


def evaluations(run_dir, suffix):
    return {path.name: path.read_bytes() for path in (run_dir / "evaluations").glob(f"*{suffix}")}


def test_another_threshold_gives_what_a_training_with_it_gives(averaging, source, trained_with, tmp_path, monkeypatch):
    changes = {"evaluate.background_threshold": 0.3, "evaluate.curve_stop": 0.8}
    afresh = trained_with(changes)
    monkeypatch.setattr("toco.train.reevaluate.open_data", None)  # no images, no network
    result = reevaluate(source, tmp_path / "target", replace(averaging, changes), recipe="test")
    expected = RunFolder(afresh).result()
    written = RunFolder(tmp_path / "target").result()
    assert result.metrics == written["metrics"] == expected["metrics"] != RunFolder(source).result()["metrics"]
    for key in ("status", "step", "digest", "last_metrics", "averaged_evaluations", "message"):
        assert written[key] == expected[key], key
    assert values(tmp_path / "target", "val") == values(afresh, "val")[-2:]
    assert values(tmp_path / "target", "train") == values(afresh, "train")
    last = {name: text for name, text in evaluations(afresh, ".json").items() if name != "step_00000002.json"}
    assert evaluations(tmp_path / "target", ".json") == last
    assert evaluations(tmp_path / "target", ".npz") == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate.cam_scales": [1.0, 0.5], "evaluate.cam_flip": True},
        {"evaluate.background_threshold": 0.33},  # was not counted at
        {"evaluate.average_last": 3, "evaluate.background_threshold": 0.3},  # the first evaluation's counts are gone
    ],
)
def test_what_was_not_counted_is_evaluated_from_the_checkpoints(averaging, source, trained_with, tmp_path, changes):
    afresh = trained_with(changes)
    config = replace(averaging, changes)
    result = reevaluate(source, tmp_path / "target", config)
    count = config.evaluate.average_last
    assert result.metrics == RunFolder(afresh).result()["metrics"] != RunFolder(source).result()["metrics"]
    assert values(tmp_path / "target", "val") == values(afresh, "val")[-count:]
    assert evaluations(tmp_path / "target", ".npz") == evaluations(afresh, ".npz")
    pictures = "pictures/step_00000006"
    assert [path.read_bytes() for path in (tmp_path / "target" / pictures).iterdir()] == [
        path.read_bytes() for path in (afresh / pictures).iterdir()
    ]


def test_the_record_says_what_was_evaluated_and_where(averaging, source, tmp_path):
    config = replace(averaging, {"evaluate.background_threshold": 0.3})
    reevaluate(source, tmp_path / "rescored", config, recipe="test")
    reevaluate(source, tmp_path / "evaluated", replace(averaging, {"evaluate.cam_flip": True}))
    trained = json.loads((source / "provenance.json").read_text())
    for name, rescored in (("rescored", True), ("evaluated", False)):
        recorded = json.loads((tmp_path / name / "provenance.json").read_text())
        origin = recorded.pop("reevaluated")
        assert recorded == trained
        assert origin["of"] == digest(averaging.resolved())
        assert origin["rescored"] is rescored
        assert (origin["environment"] is None) is rescored
    assert RunFolder(tmp_path / "rescored").config() == config.resolved()
    assert json.loads((tmp_path / "rescored" / "config.json").read_text())["recipe"] == "test"


def test_another_training_is_refused(averaging, source, tmp_path):
    with pytest.raises(ValueError, match=r"another config: method.temperature \(0.5 -> 0.3\)"):
        reevaluate(source, tmp_path / "target", replace(averaging, {"method.temperature": 0.3}))
    with pytest.raises(ValueError, match="holds no finished training"):
        reevaluate(tmp_path / "nothing", tmp_path / "target", averaging)
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there already"):
        reevaluate(source, tmp_path / "there", averaging)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_a_checkpoint_that_is_gone_is_named_and_nothing_is_left(averaging, source, tmp_path):
    shutil.copytree(source, tmp_path / "source")
    shutil.rmtree(tmp_path / "source/checkpoints/step_00000004")
    config = replace(averaging, {"evaluate.cam_flip": True})
    with pytest.raises(ValueError, match=r"no checkpoint of step 4, .* with keep_checkpoints=2 or more"):
        reevaluate(tmp_path / "source", tmp_path / "target", config)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_other_validation_data_is_refused(averaging, source, data_root, tmp_path):
    shutil.copytree(data_root, tmp_path / "data")
    (tmp_path / "data/ImageSets/Segmentation/val.txt").write_text("image12\nimage13\n")
    config = replace(averaging, {"evaluate.cam_flip": True, "data.root": str(tmp_path / "data")})
    with pytest.raises(ValueError, match="other validation data"):
        reevaluate(source, tmp_path / "target", config)
