"""What a person types, on the embedded benchmark cut short: train, interrupt, resume, evaluate,
track.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from toco.__main__ import main
from toco.files import read_record
from toco.tracking import open_store

NUM_STEPS = 30


def command(*words):
    return [sys.executable, "-m", "toco", *map(str, words)]


def environment():
    # One thread, so that sums are added in the same order in every process.
    return {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


def run(*words):
    done = subprocess.run(
        command(*words), capture_output=True, text=True, env=environment(), timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_here(*words):
    """The same in this process, where MLflow is imported already."""
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def read(path):
    return json.loads(path.read_text())


def rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def interrupt(process, run_dir):
    """Send SIGTERM as soon as the first row is there; the process's standard output."""
    while process.poll() is None and not (run_dir / "metrics.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 143, errors
    return output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder that was interrupted and resumed, with what the two processes printed and the
    first result.
    """
    folder = tmp_path_factory.mktemp("embedded")
    run_dir = folder / "run"
    settings = {
        "data.root": folder / "data",
        "data.num_train": 48,
        "data.num_val": 12,
        "num_steps": NUM_STEPS,
        "batch_size": 8,
        "evaluate_every": 20,
        "evaluate.num_pictures": 2,
        "log_every": 1,
        "device": "cpu",
    }
    changes = [word for path, value in settings.items() for word in ("--set", f"{path}={value}")]
    train = ["train", "shapes_nano", *changes, "--run-dir", run_dir, "--no-progress"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command(*train), stdout=pipe, stderr=pipe, text=True, env=environment()
    )
    stopped = interrupt(process, run_dir)
    result = read(run_dir / "result.json")
    return run_dir, stopped, result, run(*train, "--resume")


@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_its_end(trained):
    run_dir, stopped, first_result, resumed = trained
    assert first_result["status"] == "stopped"
    step = first_result["step"]
    assert 0 < step < NUM_STEPS
    assert stopped.startswith(f"stopped after step {step}: ")

    result = read(run_dir / "result.json")
    assert (result["status"], result["step"], result["message"]) == ("finished", NUM_STEPS, None)
    assert result["digest"] == first_result["digest"]
    assert resumed.startswith(f"finished after step {NUM_STEPS}: ")
    printed = dict(re.findall(r"(\w+) mIoU +([\d.]+) %", resumed))
    assert printed == {
        name: f"{100 * result['metrics'][f'val/{name}_miou']:.1f}"
        for name in ("seg", "cam", "aux_cam")
    }
    # Every step once, in one file, whichever process made it.
    assert [row["step"] for row in rows(run_dir) if row["kind"] == "train"] == list(
        range(1, NUM_STEPS + 1)
    )
    evaluations = [row for row in rows(run_dir) if row["kind"] == "val"]
    assert [row["step"] for row in evaluations] == [20, NUM_STEPS]
    assert result["last_metrics"] == result["metrics"] == evaluations[-1]["values"]


@pytest.mark.slow
def test_evaluating_the_checkpoint_gives_the_last_row_exactly(trained, tmp_path):
    run_dir = trained[0]
    output = run("evaluate", run_dir, "--out", tmp_path / "out")
    evaluation = read(tmp_path / "out" / "evaluation.json")
    assert evaluation["step"] == NUM_STEPS
    assert evaluation["metrics"] == rows(run_dir)[-1]["values"]
    assert evaluation == read_record(run_dir / "evaluations" / f"step_{NUM_STEPS:08d}.json")
    assert len(list((tmp_path / "out" / "pictures").glob("*.png"))) == 2
    for curve in ("patch_similarity.png", "threshold_curve.png"):
        assert (tmp_path / "out" / curve).stat().st_size > 1000

    lines = output.splitlines()
    for name, score in zip(
        evaluation["class_names"], evaluation["per_class"]["seg_iou"], strict=True
    ):
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert line.split()[1] == ("-" if score is None else f"{100 * score:.1f}")
    assert "Not the official protocol" in output


@pytest.mark.slow
def test_mlflow_holds_what_the_run_folder_holds(trained, tmp_path):
    run_dir, uri = trained[0], f"sqlite:///{tmp_path}/mlflow.db"
    output = run_here("track", run_dir, "--tracking-uri", uri, "--experiment", "embedded")
    run_id = re.search(r"/runs/([0-9a-f]{32})\?", output)[1]
    client = open_store(uri, "embedded").client
    stored = client.get_run(run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params["num_steps"] == str(NUM_STEPS)
    result, last = read(run_dir / "result.json"), rows(run_dir)[-1]
    for name, value in last["values"].items():
        assert stored.data.metrics[name] == value, name
        assert (
            stored.data.metrics[f"final/{name.removeprefix('val/')}"] == result["metrics"][name]
        ), name
    history = client.get_metric_history(run_id, "train/loss_total")
    expected = [
        (row["step"], row["values"]["train/loss_total"])
        for row in rows(run_dir)
        if row["kind"] == "train"
    ]
    assert sorted((metric.step, metric.value) for metric in history) == expected
