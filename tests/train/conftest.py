"""A training of two seconds: sixteen images, three blocks, six steps, three evaluations."""

import os
import subprocess
import time

import pytest


@pytest.fixture(scope="session")
def config(tiny_config):
    return tiny_config


@pytest.fixture
def long_training(data_root):
    """Starts ``python -m toco train`` as a process group of its own; it has logged a step, unless
    it ended before.
    """

    def start(run_dir, *launcher, num_workers=0):
        settings = {
            "data.root": data_root,
            "data.train_list": "train",
            "backbone.name": "vit_nano",
            "backbone.weights": "null",
            "views.crop_size_px": 32,
            "method.local_crop_size_px": 16,
            "num_steps": 5000,
            "evaluate_every": 5000,
            "log_every": 1,
            "num_workers": num_workers,
        }
        command = [
            *launcher,
            "-m",
            "toco",
            "train",
            "voc_deit_b",
            "--run-dir",
            str(run_dir),
            "--no-progress",
        ]
        for path, value in settings.items():
            command += ["--set", f"{path}={value}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        while process.poll() is None and not (run_dir / "metrics.jsonl").exists():
            time.sleep(0.2)
        return process

    return start
