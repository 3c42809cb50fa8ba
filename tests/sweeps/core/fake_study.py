"""A study of fake trainings as a command."""

import sys
from pathlib import Path

from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study

sys.path.insert(0, str(Path(__file__).parents[1]))
from ray_drivers import trust_trainings

STUDY = Study(
    name="fake",
    title="Fake trainings",
    recipe="shapes_nano",
    design=OneFactor((Factor("method.aux_block", (7, 9), labels=("#8", "#10")),)),
    seeds=(0, 1),
    metrics=(Metric("val/cam_miou", "M"),),
    # Data and weights are read by the driver alone, to know what they are.
    changes={
        "data.num_train": 1,
        "data.num_val": 1,
        "num_steps": 20,
        "evaluate_every": 5,
        "optim.warmup_steps": 0,
    },
    purpose="direction",
    repeat_base=False,
    train="fake_training:train",
)

main = study_command(STUDY, __doc__)

if __name__ == "__main__":
    trust_trainings()
    main()
