"""On real photographs, where there are some: the folder that ``TOCO_VOC_ROOT`` names, in VOC
layout.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

VARIABLE = "TOCO_VOC_ROOT"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        VARIABLE not in os.environ, reason=f"{VARIABLE} names no VOC-shaped folder of real images"
    ),
]
SETTINGS = {
    "backbone.model": "deit_tiny_patch16_224",
    "backbone.weights": "null",
    "views.crop_size_px": 96,
    "method.local_crop_size_px": 48,
    "method.segmentation.start_step": 1,
    "method.energy.start_step": 1,
    "optim.warmup_steps": 1,
    "evaluate.max_images": 4,
    "evaluate.size_px": 96,
    "evaluate.num_pictures": 2,
    "num_steps": 2,
    "evaluate_every": 2,
    "log_every": 1,
    "num_workers": 0,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def root():
    return Path(os.environ[VARIABLE])


def run(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "toco", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=800)


def test_the_folder_has_no_fault(root):
    checked = run("data", "check", root)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "0 faults" in checked.stdout


def test_two_steps_of_the_voc_recipe_and_an_evaluation(root, tmp_path):
    run_dir = tmp_path / "run"
    changes = [
        word
        for path, value in {"data.root": root, **SETTINGS}.items()
        for word in ("--set", f"{path}={value}")
    ]
    trained = run("train", "voc_deit_b", *changes, "--run-dir", run_dir, "--no-progress")
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.startswith("finished after step 2: ")

    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = {"classification", "aux_classification", "ptc", "ctc"}
    assert {f"train/{name}" for name in losses} <= rows[0]["values"].keys()
    assert {f"train/{name}" for name in losses | {"segmentation", "energy"}} <= rows[1][
        "values"
    ].keys()
    metrics = rows[-1]["values"]
    assert all(0 <= metrics[f"val/{name}_miou"] <= 1 for name in ("cam", "aux_cam", "seg"))

    evaluation = json.loads((run_dir / "evaluations" / "step_00000002.json").read_text())
    assert evaluation["metrics"] == metrics
    assert len(evaluation["patch_similarity"]) == 12
    assert len(list((run_dir / "pictures" / "step_00000002").glob("*.png"))) == 2

    evaluated = run("evaluate", run_dir, "--out", tmp_path / "out")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["metrics"] == metrics
