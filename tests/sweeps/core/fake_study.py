"""A study of fake trainings as a command: python fake_study.py STORAGE [CPUS_PER_TRIAL]."""

import sys
from pathlib import Path

from sweeps.core.launch import Launch, run_study
from sweeps.core.study import Factor, Metric, Study

STUDY = Study(
    name="fake",
    title="Fake trainings",
    recipe="shapes_nano",
    factors=(Factor("method.aux_block", (7, 9), ("#8", "#10")),),
    seeds=(0, 1),
    metrics=(Metric("val/cam_miou", "M"),),
    # Data and weights are read by the driver alone, to know what they are.
    changes={"data.num_train": 1, "data.num_val": 1, "num_steps": 20, "evaluate_every": 5, "optim.warmup_steps": 0},
    train="fake_training:train",
)

if __name__ == "__main__":
    storage, *cpus = sys.argv[1:]
    launch = Launch(Path(storage), concurrent=2, cpus_per_trial=float(cpus[0]) if cpus else 1.0)
    sys.exit(0 if run_study(STUDY, launch) else 1)
