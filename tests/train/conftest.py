"""A training of two seconds: sixteen images, three blocks, six steps, three evaluations."""

import os
import subprocess
import time

import pytest

from toco.backbones import vit_nano
from toco.data import ViewsConfig, voc
from toco.evaluate import EvaluateConfig
from toco.methods import toco
from toco.train.optim import OptimConfig
from toco.train.run_config import RunConfig


@pytest.fixture(scope="session")
def config(data_root):
    return RunConfig(
        data=voc.Config(root=data_root, train_list="train"),
        views=ViewsConfig(crop_size_px=32),
        backbone=vit_nano.Config(width=16, depth=3, num_heads=2, image_size_px=32, weights=None),
        method=toco.Config(
            aux_block=1,
            cam_scales=(1.0,),
            num_local_crops=2,
            local_crop_size_px=16,
            decoder_width=8,
            projection=toco.ProjectionConfig(hidden_width=16, bottleneck_width=8, output_width=16),
            segmentation=toco.Term(weight=0.1, start_step=2),
            energy=toco.Term(weight=0.05, start_step=2),
        ),
        optim=OptimConfig(lr=1e-3, warmup_steps=2),
        evaluate=EvaluateConfig(size_px=32, cam_scales=(1.0,), cam_flip=False, curve_step=0.1, num_pictures=1),
        num_steps=6,
        batch_size=4,
        evaluate_every=2,
        log_every=1,
        keep_checkpoints=3,
        num_workers=0,
    )


@pytest.fixture
def long_training(data_root):
    """Starts ``python -m toco train`` as a process group of its own; it has logged a step, unless it ended before."""

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
        command = [*launcher, "-m", "toco", "train", "voc_deit_b", "--run-dir", str(run_dir), "--no-progress"]
        for path, value in settings.items():
            command += ["--set", f"{path}={value}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
        while process.poll() is None and not (run_dir / "metrics.jsonl").exists():
            time.sleep(0.2)
        return process

    return start
