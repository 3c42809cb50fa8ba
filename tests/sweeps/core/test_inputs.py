"""What trainings read, by what it holds and not by where it lies."""

import dataclasses
import hashlib

import pytest

from sweeps.core.inputs import training_inputs
from sweeps.core.study import Factor, Metric, Study
from toco.backbones.vit_nano import BUNDLED_WEIGHTS


@pytest.fixture
def study(tmp_path):
    changes = {"data.num_train": 2, "data.num_val": 1, "data.root": str(tmp_path)}
    factor = Factor("method.aux_block", (7, 9))
    return Study("example", "An example", "shapes_nano", (factor,), (0, 1), (Metric("val/cam_miou", "M"),), changes)


def test_trainings_that_read_the_same_have_one_item(study, tmp_path):
    (read,) = training_inputs(study.resolve())
    assert len(read["train"]) == len(read["val"]) == 64
    assert read["train"] != read["val"]
    assert read["weights"] == hashlib.sha256(BUNDLED_WEIGHTS.read_bytes()).hexdigest()
    (tmp_path / "elsewhere").mkdir()
    moved = dataclasses.replace(study, changes={**study.changes, "data.root": str(tmp_path / "elsewhere")})
    assert training_inputs(moved.resolve()) == [read]


def test_weights_that_are_not_there_are_found_before_any_training(study):
    lacking = dataclasses.replace(study, changes={**study.changes, "backbone.weights": "no/such/file"})
    with pytest.raises(FileNotFoundError, match="no/such/file"):
        training_inputs(lacking.resolve())


def test_other_weights_and_other_data_are_others(study, tmp_path):
    (read,) = training_inputs(study.resolve())
    (tmp_path / "weights").write_bytes(b"other")
    changes = {**study.changes, "backbone.weights": str(tmp_path / "weights")}
    (other,) = training_inputs(dataclasses.replace(study, changes=changes).resolve())
    assert other == {**read, "weights": hashlib.sha256(b"other").hexdigest()}
    (image,) = (path for path in tmp_path.glob("shapes-*/SegmentationClass/val_00000.png"))
    image.write_bytes(image.read_bytes() + b"x")
    (other,) = training_inputs(study.resolve())
    assert other["train"] == read["train"]
    assert other["val"] != read["val"]


def test_a_study_that_varies_the_data_has_an_item_for_each(study):
    study = dataclasses.replace(study, factors=(Factor("data.seed", (3, 4)),))
    first, second = training_inputs(study.resolve())
    assert first["train"] != second["train"]
    assert first["weights"] == second["weights"]
