import json
import shutil

import pytest

from toco.config import digest, replace
from toco.train import records
from toco.train.loop import train
from toco.train.reevaluate import reevaluate, way_expected, way_from
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
        (
            row["step"],
            {name: value for name, value in row["values"].items() if name != "train/step_time_s"},
        )
        for row in RunFolder(run_dir).metrics()
        if row["kind"] == kind
    ]


def evaluations(run_dir, suffix):
    return {path.name: path.read_bytes() for path in (run_dir / "evaluations").glob(f"*{suffix}")}


def test_another_threshold_gives_what_a_training_with_it_gives(
    averaging, source, trained_with, tmp_path, monkeypatch
):
    changes = {"evaluate.background_threshold": 0.3, "evaluate.curve_stop": 0.8}
    afresh = trained_with(changes)
    config = replace(averaging, changes)
    assert (
        way_from(source, config, same_code=True) == way_expected(averaging, config, 0) == "rescore"
    )
    monkeypatch.setattr("toco.train.reevaluate.open_data", None)  # no images, no network
    result = reevaluate(source, tmp_path / "target", config, "rescore", recipe="test")
    expected = RunFolder(afresh).result()
    written = RunFolder(tmp_path / "target").result()
    assert (
        result.metrics
        == written["metrics"]
        == expected["metrics"]
        != RunFolder(source).result()["metrics"]
    )
    for key in ("status", "step", "digest", "last_metrics", "averaged_evaluations", "message"):
        assert written[key] == expected[key], key
    assert values(tmp_path / "target", "val") == values(afresh, "val")[-2:]
    assert values(tmp_path / "target", "train") == values(afresh, "train")
    last = {
        name: text
        for name, text in evaluations(afresh, ".json").items()
        if name != "step_00000002.json"
    }
    assert evaluations(tmp_path / "target", ".json") == last
    assert evaluations(tmp_path / "target", ".npz") == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate.cam_scales": [1.0, 0.5], "evaluate.cam_flip": True},
        {"evaluate.background_threshold": 0.33},  # was not counted at
        {
            "evaluate.average_last": 3,
            "evaluate.background_threshold": 0.3,
        },  # the first evaluation's counts are gone
    ],
)
def test_what_was_not_counted_is_evaluated_from_the_checkpoints(
    averaging, source, trained_with, tmp_path, changes
):
    changes = {**changes, "evaluate.num_pictures": 1}
    afresh = trained_with(changes)
    config = replace(averaging, changes)
    assert (
        way_from(source, config, same_code=True) == way_expected(averaging, config, 3) == "evaluate"
    )
    result = reevaluate(source, tmp_path / "target", config, "evaluate")
    count = config.evaluate.average_last
    assert (
        result.metrics
        == RunFolder(afresh).result()["metrics"]
        != RunFolder(source).result()["metrics"]
    )
    assert values(tmp_path / "target", "val") == values(afresh, "val")[-count:]
    assert evaluations(tmp_path / "target", ".npz") == evaluations(afresh, ".npz")
    pictures = "pictures/step_00000006"
    assert [path.read_bytes() for path in (tmp_path / "target" / pictures).iterdir()] == [
        path.read_bytes() for path in (afresh / pictures).iterdir()
    ]


def test_the_record_says_what_was_evaluated_and_where(averaging, source, tmp_path):
    config = replace(averaging, {"evaluate.background_threshold": 0.3})
    reevaluate(source, tmp_path / "rescored", config, "rescore", recipe="test")
    reevaluate(
        source, tmp_path / "evaluated", replace(averaging, {"evaluate.cam_flip": True}), "evaluate"
    )
    trained = RunFolder(source).provenance()
    for name, rescored in (("rescored", True), ("evaluated", False)):
        recorded = RunFolder(tmp_path / name).provenance()
        origin = recorded.pop("reevaluated")
        assert recorded == trained
        assert (origin["of"], origin["run"]) == (digest(averaging.resolved()), source.name)
        assert origin["rescored"] is rescored
        assert (origin["environment"] is None) is rescored
    assert RunFolder(tmp_path / "rescored").config() == config.resolved()
    assert json.loads((tmp_path / "rescored" / "config.json").read_text())["recipe"] == "test"


def test_another_training_is_refused(averaging, source, tmp_path):
    with pytest.raises(ValueError, match=r"another config: method.temperature \(0.5 -> 0.3\)"):
        reevaluate(
            source, tmp_path / "target", replace(averaging, {"method.temperature": 0.3}), "evaluate"
        )
    with pytest.raises(ValueError, match="holds no finished training"):
        reevaluate(tmp_path / "nothing", tmp_path / "target", averaging, "evaluate")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        reevaluate(source, tmp_path / "there", averaging, "evaluate")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_a_checkpoint_that_is_gone_is_named_and_nothing_is_left(averaging, source, tmp_path):
    shutil.copytree(source, tmp_path / "source")
    shutil.rmtree(tmp_path / "source/checkpoints/step_00000004")
    config = replace(averaging, {"evaluate.cam_flip": True})
    with pytest.raises(
        ValueError, match=r"no checkpoint of step 4, .* with keep_checkpoints=2 or more"
    ):
        reevaluate(tmp_path / "source", tmp_path / "target", config, "evaluate")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_other_validation_data_is_refused(averaging, source, data_root, tmp_path):
    shutil.copytree(data_root, tmp_path / "data")
    (tmp_path / "data/ImageSets/Segmentation/val.txt").write_text("image12\nimage13\n")
    config = replace(averaging, {"evaluate.cam_flip": True, "data.root": str(tmp_path / "data")})
    with pytest.raises(ValueError, match="other validation data"):
        reevaluate(source, tmp_path / "target", config, "evaluate")


FLIPPED, OTHER_THRESHOLD = {"evaluate.cam_flip": True}, {"evaluate.background_threshold": 0.3}


def test_what_other_code_counted_is_not_used(averaging, source, tmp_path):
    config = replace(averaging, OTHER_THRESHOLD)
    assert way_from(source, config, same_code=True) == "rescore"
    assert way_from(source, config, same_code=False) == "evaluate"
    shutil.copytree(source, tmp_path / "source")
    for path in (tmp_path / "source/evaluations").iterdir():
        path.unlink()
    # Not even looked at.
    expected = reevaluate(source, tmp_path / "rescored", config, "rescore").metrics
    assert (
        reevaluate(tmp_path / "source", tmp_path / "evaluated", config, "evaluate").metrics
        == expected
    )


def unfinished(run_dir):
    (run_dir / "result.json").write_text(json.dumps({"format_version": 1, "status": "stopped"}))


@pytest.mark.parametrize(
    ("damage", "rescored", "evaluated"),
    [
        (shutil.rmtree, None, None),
        (unfinished, None, None),
        (lambda run_dir: (run_dir / "result.json").write_text("{"), None, None),
        (lambda run_dir: (run_dir / "config.json").write_bytes(b""), None, None),
        (
            lambda run_dir: (run_dir / "evaluations/step_00000004.npz").write_bytes(b"PK"),
            "evaluate",
            "evaluate",
        ),
        (
            lambda run_dir: (run_dir / "evaluations/step_00000006.npz").unlink(),
            "evaluate",
            "evaluate",
        ),
        (lambda run_dir: shutil.rmtree(run_dir / "checkpoints/step_00000004"), "rescore", None),
        (
            lambda run_dir: (run_dir / "checkpoints/step_00000006/state.json").unlink(),
            "rescore",
            None,
        ),
        (
            lambda run_dir: (run_dir / "checkpoints/step_00000002/state.json").unlink(),
            "rescore",
            "evaluate",
        ),
    ],
)
def test_a_source_that_lacks_what_is_needed_is_none(
    averaging, source, tmp_path, damage, rescored, evaluated
):
    run_dir = tmp_path / "source"
    shutil.copytree(source, run_dir)
    damage(run_dir)
    assert way_from(run_dir, replace(averaging, OTHER_THRESHOLD), same_code=True) == rescored
    assert way_from(run_dir, replace(averaging, FLIPPED), same_code=True) == evaluated


def test_another_training_is_no_source(averaging, source):
    for changes in ({"evaluate_every": 3}, {"method.temperature": 0.3}):
        assert (
            way_from(source, replace(averaging, {**changes, **OTHER_THRESHOLD}), same_code=True)
            is None
        )


@pytest.mark.parametrize(
    ("changes", "checkpoints", "way"),
    [
        (OTHER_THRESHOLD, 0, "rescore"),
        (
            {"evaluate.background_threshold": 0.33},
            1,
            None,
        ),  # will not be counted at, and it averages two
        ({"evaluate.background_threshold": 0.33}, 2, "evaluate"),
        ({**OTHER_THRESHOLD, "evaluate.average_last": 1}, 0, "rescore"),
        ({**OTHER_THRESHOLD, "evaluate.average_last": 3}, 2, None),
        ({**FLIPPED, "evaluate.average_last": 1}, 1, "evaluate"),
        ({**FLIPPED, "evaluate.average_last": 1}, 0, None),
        # There are three evaluations in all.
        ({**FLIPPED, "evaluate.average_last": 9}, 3, "evaluate"),
    ],
)
def test_what_a_training_to_come_will_serve(averaging, changes, checkpoints, way):
    assert way_expected(averaging, replace(averaging, changes), checkpoints) == way


def test_a_run_of_another_machine_keeps_the_choices_that_were_made_there(
    averaging, source, tmp_path
):
    """On CUDA the bilateral filter of large crops is another one; this
    machine need not have CUDA.
    """
    large = replace(averaging, {"views.crop_size_px": 448, "method.dense_energy.scale": 1.0})
    here = large.resolved()
    there = large.model_copy(
        update={"device": "cuda", "method": large.method.resolved("cuda", 448)}
    )
    assert digest(here) != digest(there)
    shutil.copytree(source, tmp_path / "source")
    head = records.read(tmp_path / "source/config.json")
    changed = {"digest": digest(there), "config": there.model_dump(mode="json")}
    records.write(tmp_path / "source/config.json", head | changed)
    config = replace(large, OTHER_THRESHOLD)
    assert way_from(tmp_path / "source", config, same_code=True) == "rescore"
    reevaluate(tmp_path / "source", tmp_path / "target", config, "rescore")
    assert RunFolder(tmp_path / "target").config() == there.model_copy(
        update={"evaluate": config.evaluate}
    )
