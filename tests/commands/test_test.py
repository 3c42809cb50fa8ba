import json
import re

import pytest
from click.testing import CliRunner

from toco.__main__ import main
from toco.files import read_record

SETTINGS = {
    "data.num_train": 4,
    "data.num_val": 5,
    "data.image_size_px": 32,
    "views.crop_size_px": 32,
    "evaluate.size_px": 32,
    "method.local_crop_size_px": 16,
    "optim.warmup_steps": 0,
    "batch_size": 4,
    "num_steps": 1,
    "evaluate_every": 1,
    "device": "cpu",
    "inference.crf.iterations": 2,
}


def toco(*words, **environment):
    result = CliRunner().invoke(
        main, [str(word) for word in words], env={k: str(v) for k, v in environment.items()}
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("test")
    settings = SETTINGS | {"data.root": folder / "data"}
    changes = [word for path, value in settings.items() for word in ("--set", f"{path}={value}")]
    trained = toco("train", "shapes_nano", *changes, "--run-dir", folder / "run", "--no-progress")
    assert trained.exit_code == 0, trained.output
    return folder / "run"


@pytest.fixture(scope="module")
def tested(run_dir):
    out = run_dir.parent / "out"
    result = toco("test", run_dir, "--out", out, "--also-without-crf", "--no-progress")
    assert result.exit_code == 0, result.output
    return out, result.output


def read(path):
    return json.loads(path.read_text())


def test_it_writes_predictions_and_scores_with_and_without_the_crf(tested):
    out, output = tested
    printed = [float(number) for number in re.findall(r"mIoU ([\d.]+) %", output)]
    for name, crf, miou in zip(
        ("", "_without_crf"), ("2 iterations", "no CRF"), printed, strict=True
    ):
        names = [f"val_0000{i}.png" for i in range(5)]
        assert sorted(path.name for path in (out / f"predictions{name}").iterdir()) == [
            "about.json",
            *names,
        ]
        scores = read(out / f"scores{name}.json")
        assert scores["num_images"] == 5
        assert crf in scores["protocol"]
        assert miou == pytest.approx(100 * scores["metrics"]["miou"], abs=0.01)
        made_by = read_record(out / f"predictions{name}" / "about.json")
        assert {"format_version": 2, **scores["about"]} == made_by | {
            "images": scores["about"]["images"]
        }


def test_processes_of_torchrun_share_the_images_and_the_last_one_scores(run_dir, tested, tmp_path):
    place = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    words = ("test", run_dir, "--out", tmp_path, "--no-progress")
    first = toco(*words, RANK=1, LOCAL_RANK=1, **place)
    assert (
        first.output
        == "Process 1 is done; 3 images of other processes are not. The last process scores.\n"
    )
    assert not (tmp_path / "scores.json").exists()
    toco(*words, RANK=0, LOCAL_RANK=0, **place)
    assert read(tmp_path / "scores.json") == read(tested[0] / "scores.json")
    for path in (tmp_path / "predictions").iterdir():
        assert path.read_bytes() == (tested[0] / "predictions" / path.name).read_bytes()


def test_a_broken_or_too_small_image_is_known_before_anything_is_made(run_dir, tmp_path):
    words = (
        "test",
        run_dir,
        "--out",
        tmp_path,
        "--set",
        "inference.scales=[1,0.1]",
        "--no-progress",
    )
    refused = toco(*words)
    assert refused.exit_code == 1
    assert (
        "5 of 5 images cannot be used. 'val_00000': expected sides of at least 80 px"
        in refused.output
    )
    assert not list(tmp_path.iterdir())


def test_it_refuses_what_makes_no_sense(run_dir, tested, tmp_path):
    refused = toco(
        "test", run_dir, "--out", tmp_path, "--also-without-crf", "--set", "inference.crf=null"
    )
    assert refused.exit_code == 2
    assert "inference.crf is null" in refused.output
    mixed = toco("test", run_dir, "--out", tested[0], "--set", "inference.scales=[1.0]")
    assert mixed.exit_code != 0
    assert "outputs of other settings: inference." in mixed.output
