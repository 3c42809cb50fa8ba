"""Finished studies are remembered, and forgotten as soon as anything is different."""

import dataclasses
import hashlib

import pytest

from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study
from sweeps.core.store import finished
from sweeps.core.store.finished import recall, remember
from sweeps.core.store.identity import trial_inputs
from sweeps.core.store.ledger import Ledger
from tests.sweeps.core.damages import DAMAGES
from tests.sweeps.core.entries import make_entry
from toco import code_digest
from toco.data.shapes import ShapesFolder


@pytest.fixture
def study(tmp_path):
    changes = {"data.num_train": 2, "data.num_val": 1, "data.root": str(tmp_path / "data")}
    design = OneFactor((Factor("method.temperature", (0.4, 0.5)),))
    return Study(
        "example",
        "An example",
        "shapes_nano",
        design,
        (0, 1),
        (Metric("val/cam_miou", "M"),),
        changes,
    )


def finish(study, storage):
    """Enter every trial, and remember that."""
    trials = study.resolve().trials
    keys = [hashlib.sha256(trial.digest.encode()).hexdigest()[:20] for trial in trials]
    for key in keys:
        Ledger(storage).write(make_entry(key=key, training_key=key))
    folder = storage / "example-01234567"
    folder.mkdir(parents=True)
    files = [folder / "table.csv", folder / "report.html"]
    for file in files:
        file.write_text(f"The content of {file.name}.")
    remember(study, storage, keys, trial_inputs(trials), "the table", 3, files[-1], files)
    return keys


def test_a_finished_study_is_recalled_until_something_differs(study, tmp_path, monkeypatch):
    storage = tmp_path / "results"
    assert recall(study, storage) is None
    keys = finish(study, storage)
    ended = recall(study, storage)
    assert (ended.text_printed, ended.exit_code) == ("the table", 3)
    assert (ended.folder, ended.page) == ("example-01234567", "report.html")
    # Moved elsewhere it is still there.
    assert recall(study, storage.rename(tmp_path / "moved")).exit_code == 3
    (tmp_path / "moved").rename(storage)
    for change in (
        {"seeds": (0, 2)},
        {"title": "Another"},
        {"changes": {**study.changes, "num_steps": 100}},
    ):
        assert recall(dataclasses.replace(study, **change), storage) is None
    with monkeypatch.context() as patch:
        patch.setattr(finished, "_sources", lambda train: "other code")
        assert recall(study, storage) is None
    (image,) = (
        path for path in (tmp_path / "data").glob("shapes-*/SegmentationClass/val_00000.png")
    )
    kept = image.read_bytes()
    image.write_bytes(kept + b"x")
    assert recall(study, storage) is not None  # it is drawn again
    assert image.read_bytes() == kept
    with monkeypatch.context() as patch:
        patch.setattr(ShapesFolder, "manifest_digest", lambda split: "other images")
        assert recall(study, storage) is None
    (entry,) = storage.glob(f"ledger/??/{keys[0]}.json")
    kept = entry.read_text()
    entry.unlink()
    assert recall(study, storage) is None
    # Computed again, for another study, it is another result, and the table is out of date.
    entry.write_text(kept.replace('"step":1', '"step":2'))
    assert recall(study, storage) is None
    entry.write_text(kept)
    assert recall(study, storage) is not None


@pytest.mark.parametrize(
    "which", ["finished/*.json", "ledger/??/*.json", "example-*/table.csv", "example-*/report.html"]
)
def test_nothing_is_recalled_where_a_byte_changed(study, tmp_path, which):
    storage = tmp_path / "results"
    finish(study, storage)
    file = sorted(storage.glob(which))[0]
    whole = file.read_bytes()
    for name, make in DAMAGES.items():
        if (damaged := make(whole)) != whole:
            file.write_bytes(damaged)
            assert recall(study, storage) is None, name
    file.write_bytes(whole)
    assert recall(study, storage) is not None


def test_a_study_that_varies_its_data_is_not_remembered(study, tmp_path):
    varied = dataclasses.replace(study, design=OneFactor((Factor("data.seed", (3, 4)),)))
    finish(varied, tmp_path / "results")
    assert recall(varied, tmp_path / "results") is None


def test_all_code_of_a_trainer_of_its_own_counts(study, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "own_trainer"
    package.mkdir()
    for name in ("__init__", "loop", "loss"):
        (package / f"{name}.py").write_text("")
    owned = dataclasses.replace(study, train="own_trainer.loop:train")
    finish(owned, tmp_path / "results")
    assert recall(owned, tmp_path / "results") is not None
    (package / "loss.py").write_text("WEIGHT = 2\n")
    assert recall(owned, tmp_path / "results") is None


def test_nothing_is_remembered_of_a_study_that_lacks_a_result(study, tmp_path):
    folder = tmp_path / "results" / "example-01234567"
    folder.mkdir(parents=True)
    page = folder / "report.html"
    page.write_text("")
    trials = study.resolve().trials
    remember(
        study, tmp_path / "results", ["0" * 20], trial_inputs(trials), "the table", 0, page, [page]
    )
    assert recall(study, tmp_path / "results") is None


def test_a_study_of_a_users_own_method_is_forgotten_when_its_code_changes(
    study, tmp_path, monkeypatch
):
    method = tmp_path / "own_finished" / "method.py"
    method.parent.mkdir()
    imports = "from toco.methods import toco\nbuild = toco.build\n"
    method.write_text(f"{imports}class Config(toco.Config):\n    name: str = __name__\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"method.name": "own_finished.method", "method.local_crop_size_px": 32}
    study = dataclasses.replace(study, changes={**study.changes, **own})
    storage = tmp_path / "results"
    finish(study, storage)
    assert recall(study, storage).exit_code == 3
    for text, is_recalled in (("# a comment\n", True), ("x = 1\n", False)):
        method.write_text(method.read_text() + text)
        code_digest._module.cache_clear()
        assert (recall(study, storage) is not None) == is_recalled
