"""A study of fake trainings as a command: python fake_study.py STORAGE [CPUS_PER_TRIAL]."""

import sys
from pathlib import Path

from sweeps.core.designs import OneFactor
from sweeps.core.factors import Factor
from sweeps.core.launch import run_study
from sweeps.core.options import Launch
from sweeps.core.study import Metric, Study

STUDY = Study(
    name="fake",
    title="Fake trainings",
    recipe="shapes_nano",
    design=OneFactor((Factor("method.aux_block", (7, 9), labels=("#8", "#10")),)),
    seeds=(0, 1),
    metrics=(Metric("val/cam_miou", "M"),),
    # Data and weights are read by the driver alone, to know what they are.
    changes={"data.num_train": 1, "data.num_val": 1, "num_steps": 20, "evaluate_every": 5, "optim.warmup_steps": 0},
    purpose="direction",
    a_a=False,
    train="fake_training:train",
)

if __name__ == "__main__":
    storage, *cpus = sys.argv[1:]
    launch = Launch(Path(storage), concurrent=2, cpus_per_trial=float(cpus[0]) if cpus else 1.0)
    sys.exit(run_study(STUDY, launch))
