"""What a training refuses, prints and records of its data before the first step."""

import logging
import shutil

import pytest

from sweeps.core.store.identity import config_inputs
from toco.commands.train import _coverage
from toco.config import digest, replace
from toco.train.inputs import open_data
from toco.train.loop import train
from toco.train.parts import build_loader
from toco.train.run_folder import RunFolder


@pytest.fixture
def overlapping(tiny_config, data_root, tmp_path):
    """The tiny data with one training image in the validation list, and a class that no image
    shows.
    """
    root = tmp_path / "data"
    shutil.copytree(data_root, root)
    with (root / "ImageSets/Segmentation/val.txt").open("a") as file:
        file.write("image03\n")
    names = [f"image{i:02}" for i in range(16)]
    (root / "labels.csv").write_text(
        "name,class_ids\n" + "".join(f"{name},{i % 2 + 1}\n" for i, name in enumerate(names))
    )
    (root / "classes.txt").write_text("red\nblue\ngreen\n")
    return replace(
        tiny_config,
        {
            "data.root": str(root),
            "data.labels": "labels.csv",
            "num_steps": 2,
            "optim.warmup_steps": 0,
        },
    )


def test_an_image_in_both_splits_is_refused_before_anything_is_made(overlapping, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"1 of 5 validation images also in training: 'image03'\. .*allow_overlap=true",
    ):
        train(overlapping, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="1 of 5 validation images also in training"):
        config_inputs(overlapping)  # what a plan of a study asks first


def test_without_shuffling_every_epoch_follows_the_list(tiny_config):
    config = replace(tiny_config, {"shuffle": False, "batch_size": 8})
    train_set, _ = open_data(config)
    (first, second), (shuffled,) = (
        [batch.names for batch in build_loader(run, train_set).batches(0, number)]
        for run, number in ((config, 2), (replace(config, {"shuffle": True}), 1))
    )
    # 12 images make one batch of 8; the last four are never seen.
    assert first == second == tuple(f"image{i:02}" for i in range(8))
    assert shuffled != first
    assert digest(config) != digest(replace(config, {"shuffle": True}))


def test_what_is_allowed_is_printed_and_recorded(overlapping, tmp_path, caplog):
    config = replace(overlapping, {"data.allow_overlap": True})
    assert digest(config) == digest(overlapping)  # it changes no number
    with caplog.at_level(logging.WARNING):
        train(config, tmp_path / "run", progress=False)
    folder = RunFolder(tmp_path / "run")
    notes = folder.provenance()["data_notes"]
    assert notes == [
        "val: 1 of 5 validation images also in training: 'image03'. Remove them from one of the "
        "lists, or set "
        "data.allow_overlap=true: scores then include training images.",
        "train: no training image shows the class 'green'.",
    ]
    assert [
        record.getMessage() for record in caplog.records if record.name == "toco.train.loop"
    ] == notes
    sentence = "The masks of the split show 2 of 3 foreground classes."
    assert folder.evaluation(2).protocol.endswith(sentence)
    assert _coverage(tmp_path / "run", 2) == sentence
    assert _coverage(tmp_path / "run", 1) is None


def test_sound_data_has_no_notes(tiny_config):
    train_set, val_set = open_data(tiny_config)
    assert train_set.notes == val_set.notes == ()


def test_a_run_whose_own_module_was_edited_says_so_when_it_goes_on(tiny_config, tmp_path, caplog):
    provenance = {"data_manifest": {"train": "a" * 64, "val": "b" * 64}, "weights_sha256": None}
    folder = RunFolder(tmp_path / "run")
    folder.create(
        tiny_config, None, ("red",), {**provenance, "own_code": {"own.a": "1", "own.b": "1"}}
    )
    folder.check_same_run(
        tiny_config, None, ("red",), {**provenance, "own_code": {"own.a": "1", "own.b": "1"}}
    )
    assert caplog.messages == []
    folder.check_same_run(
        tiny_config, None, ("red",), {**provenance, "own_code": {"own.a": "1", "own.b": "2"}}
    )
    (message,) = caplog.messages
    assert message.startswith(f"The code of own.b was changed after {tmp_path / 'run'} was begun")
