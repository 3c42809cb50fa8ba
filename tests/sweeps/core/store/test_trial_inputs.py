"""What trainings read, by what it holds and not by where it lies."""

import dataclasses
import hashlib

import pytest

from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study
from sweeps.core.store.identity import trial_inputs
from toco.backbones.vit_nano import BUNDLED_WEIGHTS


@pytest.fixture
def study(tmp_path):
    changes = {"data.num_train": 2, "data.num_val": 1, "data.root": str(tmp_path)}
    design = OneFactor((Factor("method.aux_block", (7, 9)),))
    metrics = (Metric("val/cam_miou", "M"),)
    return Study(
        "example", "An example", "shapes_nano", design, (0, 1), metrics, changes, repeat_base=False
    )


def distinct(study):
    """What the trials read, each once."""
    inputs = trial_inputs(study.resolve().trials)
    assert len(inputs) == 4
    return [item for number, item in enumerate(inputs) if item not in inputs[:number]]


def test_trainings_that_read_the_same_have_one_item(study, tmp_path):
    (read,) = distinct(study)
    assert len(read["train"]) == len(read["val"]) == 64
    assert read["train"] != read["val"]
    assert read["weights"] == hashlib.sha256(BUNDLED_WEIGHTS.read_bytes()).hexdigest()
    (tmp_path / "elsewhere").mkdir()
    moved = dataclasses.replace(
        study, changes={**study.changes, "data.root": str(tmp_path / "elsewhere")}
    )
    assert distinct(moved) == [read]


def test_weights_that_are_not_there_are_found_before_any_training(study):
    lacking = dataclasses.replace(
        study, changes={**study.changes, "backbone.weights": "no/such/file"}
    )
    with pytest.raises(FileNotFoundError, match="no/such/file"):
        distinct(lacking)


def test_other_weights_and_other_data_are_others(study, tmp_path):
    (read,) = distinct(study)
    (tmp_path / "weights").write_bytes(b"other")
    changes = {**study.changes, "backbone.weights": str(tmp_path / "weights")}
    (other,) = distinct(dataclasses.replace(study, changes=changes))
    assert other == {**read, "weights": hashlib.sha256(b"other").hexdigest()}
    (image,) = (path for path in tmp_path.glob("shapes-*/SegmentationClass/val_00000.png"))
    whole = image.read_bytes()
    image.write_bytes(whole + b"x")
    assert distinct(study) == [read]  # a damaged image of the generated data is drawn again
    assert image.read_bytes() == whole
    more = dataclasses.replace(study, changes={**study.changes, "data.num_val": 2})
    (other,) = distinct(more)
    assert other["train"] == read["train"]
    assert other["val"] != read["val"]


def test_a_study_that_varies_the_data_has_an_item_for_each(study):
    study = dataclasses.replace(study, design=OneFactor((Factor("data.seed", (3, 4)),)))
    first, second = distinct(study)
    assert first["train"] != second["train"]
    assert first["weights"] == second["weights"]
