"""A study of fake trainings as a command: python fake_study.py STORAGE."""

import dataclasses
import sys
from pathlib import Path

from sweeps.core.launch import Launch, run_study
from sweeps.core.study import Factor
from sweeps.layer_ablation import STUDY

if __name__ == "__main__":
    study = dataclasses.replace(
        STUDY,
        name="fake",
        factors=(Factor("method.aux_block", (7, 9)),),
        paper_rows={},
        seeds=(0, 1),
        changes={"num_steps": 20, "evaluate_every": 5, "optim.warmup_steps": 0},
        train="fake_training:train",
    )
    sys.exit(0 if run_study(study, Launch(Path(sys.argv[1]))) else 1)
