"""A search of fake trainings as a command: python fake_search.py STORAGE."""

import sys
from pathlib import Path

from optuna.distributions import IntDistribution

from sweeps.core.design.search_space import Objective, Rungs, SearchStudy
from sweeps.core.plan.launch_options import Launch
from sweeps.core.run.start import run_study

sys.path.insert(0, str(Path(__file__).parents[1]))
from ray_drivers import trust_trainings

STUDY = SearchStudy(
    name="fake_search",
    title="A search of fake trainings",
    recipe="shapes_nano",
    # Two settings: the fake training looks at the first alone.
    space={
        "method.aux_block": IntDistribution(0, 11),
        "method.num_local_crops": IntDistribution(1, 64),
    },
    num_trials=6,
    num_random=3,
    objectives=(Objective("val/cam_miou", "M"), Objective("val/seg_miou", "seg")),
    rungs=Rungs(first=10),
    seed=5,
    changes={
        "data.num_train": 1,
        "data.num_val": 1,
        "num_steps": 20,
        "evaluate_every": 5,
        "optim.warmup_steps": 0,
        "method.ptc.start_step": 0,
        "method.ctc.start_step": 0,
        "method.segmentation.start_step": 3,
        "method.energy.start_step": 3,
    },
    train="fake_training:train",
)

if __name__ == "__main__":
    trust_trainings()
    sys.exit(run_study(STUDY, Launch(Path(sys.argv[1]), concurrent=2)))
