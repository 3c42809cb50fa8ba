"""Folders, images and classes have any name that a file system takes, and lie anywhere, also after
they were moved.
"""

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from toco.__main__ import main
from toco.backbones import vit_nano
from toco.config import flatten, replace
from toco.train.loop import train
from toco.train.run_folder import RunFolder

pytestmark = pytest.mark.slow
NAMES = (
    '-rf two words; $HOME im_$4_$ it\'s "so" `called` & so on',
    "what?a=1#b%20c%zz+d:e,f=",
    "[a-b]*?{c,d}**[!x]",
    unicodedata.normalize("NFC", "Müller é 数据集 \U0001f600"),
    unicodedata.normalize("NFD", "Müller é"),
    "x" * 250,
)
"""With ``.png``, the last is as long as a name of a file may be."""
TWO_LINES = "first\nsecond\x1b[31m\r"


def make_folder(root, image_names, class_names):
    """A ``folder`` data set with lists, masks and labels; the last two
    images are for validation.
    """
    (root / "masks").mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = {}
    for number, name in enumerate(image_names):
        mask = np.zeros((40, 48), np.uint8)
        mask[8:28, 4 + number : 24 + number] = number % len(class_names) + 1
        Image.fromarray(rng.integers(60, 120, (40, 48, 3), dtype=np.uint8)).save(
            root / f"{name}.png"
        )
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
        labels[name] = [number % len(class_names) + 1]
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in class_names))
    (root / "labels.json").write_text(json.dumps(labels))
    (root / "train.txt").write_text("".join(f"{name}\n" for name in image_names[:-2]))
    (root / "val.txt").write_text("".join(f"{name}\n" for name in image_names[-2:]))


@pytest.fixture
def one_step(tiny_config):
    """The config of a training of one step."""
    changes = {
        "num_steps": 1,
        "evaluate_every": 1,
        "optim.warmup_steps": 0,
        "method.segmentation.start_step": 0,
        "method.energy.start_step": 0,
        "evaluate.num_pictures": 2,
    }
    return replace(tiny_config, changes)


def settings_of(config):
    """The config as options of ``train shapes_nano``, without its data."""
    words = []
    for path, value in flatten(config).items():
        if not path.startswith("data."):
            words += ["--set", f"{path}={value if isinstance(value, str) else json.dumps(value)}"]
    return words


def call(*words, code=0):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == code, f"{words[0]}: {done.output[-1000:]}{done.exception!r}"
    return done.output


def test_from_images_to_outputs(one_step, tmp_path, monkeypatch):
    place = tmp_path.joinpath(*NAMES, TWO_LINES)
    root, run, out = place / "-data", place / "run", place / "out"
    make_folder(root, NAMES, NAMES[:3])
    sets = [f"root={root}", "masks=masks", "labels=labels.json"]
    assert "0 faults" in call(
        "data", "check-set", "folder", *[word for one in sets for word in ("--set", one)]
    )
    data = [word for one in ("name=folder", *sets) for word in ("--set", f"data.{one}")]
    words = ["train", "shapes_nano", "--no-progress", *settings_of(one_step), *data, "--run-dir"]
    call(*words, run)
    assert len(list(run.glob("pictures/*/*.png"))) == 2
    call("evaluate", run, "--no-progress", "--out", out / "evaluated")
    fast = ["--no-progress", "--set", "inference.crf=null", "--set", "inference.scales=[1]"]
    call("predict", run, root, "--out", out / "labels", "--overlay", "--soft", "--coco-json", *fast)
    for name in NAMES:
        assert (out / "labels" / "labels" / f"{name}.png").is_file()
    call("export-cams", run, "--out", out / "cams", "--no-progress")
    call("export-pseudo-labels", run, "--out", out / "pseudo", "--no-progress")
    call("test", run, "--out", out / "test", *fast)
    call("export-official", run, out / "official.pth")
    # The same folder by relative paths, with a slash at the end, and through a link.
    monkeypatch.chdir(place)
    (place / "link").symlink_to("run", target_is_directory=True)
    for way in ("./run/", "../" + place.name + "/run", "link"):
        assert "finished" in call(*words, way, "--resume")


@pytest.mark.parametrize("name", NAMES[:-1])
def test_class_folders(name, tmp_path):
    for label in (name, "other"):
        folder = tmp_path / label
        folder.mkdir()
        for number in range(3):
            Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / f"im{number}.png")
    (tmp_path / "classes.txt").write_text(f"{name}\nother\n")
    said = call(
        "data", "check-set", "folder", "--set", f"root={tmp_path}", "--set", "labels=folders"
    )
    assert "0 faults" in said


def test_moved_data_weights_and_runs_are_the_same_run(one_step, data_root, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(data_root, old / "data")
    (old / "weights").mkdir()
    save_file(
        vit_nano.build(one_step.backbone).vit.state_dict(), old / "weights" / "nano.safetensors"
    )
    config = replace(
        one_step,
        {
            "num_steps": 2,
            "data.root": old / "data",
            "backbone.weights": str(old / "weights" / "nano.safetensors"),
        },
    )
    train(config, tmp_path / "whole", progress=False)
    train(config, old / "run", progress=False)
    # As it is when the process was killed in the second step.
    (old / "run" / "result.json").unlink()
    shutil.rmtree(old / "run" / "checkpoints" / "step_00000002")
    fast = ["--no-progress", "--set", "inference.crf=null", "--set", "inference.scales=[1]"]
    image = Path("data", "JPEGImages", "image00.png")
    call("predict", old / "run", old / image, "--out", old / "out", *fast)
    old.rename(new)
    made = {file.name: file.stat().st_mtime_ns for file in (new / "out").rglob("*.png")}
    call("predict", new / "run", new / image, "--out", new / "out", *fast)
    assert {file.name: file.stat().st_mtime_ns for file in (new / "out").rglob("*.png")} == made
    assert str(old / "data") in call("evaluate", new / "run", "--no-progress", code=1)
    call("evaluate", new / "run", "--no-progress", "--set", f"data.root={new / 'data'}")
    moved = {
        "data.root": new / "data",
        "backbone.weights": str(new / "weights" / "nano.safetensors"),
    }
    result = train(replace(config, moved), new / "run", resume=True, progress=False)
    assert result.metrics == RunFolder(tmp_path / "whole").result()["metrics"]
    assert not old.exists()
