"""A study of the paper with trainings of a few seconds, as a command: python twin_study.py
--storage FOLDER.

Ten trainings of Table 5 (a); with more than three kills in ``TOCO_KILLS`` the 22 of the whole Table
5.
"""

import dataclasses
import os

from sweeps.core.commands.command import study_command
from sweeps.layer_ablation import STUDY as LAYER_ABLATION
from sweeps.table5 import STUDY as TABLE_5

KILLS = int(os.environ.get("TOCO_KILLS", "3"))

STUDY = dataclasses.replace(
    TABLE_5 if KILLS > 3 else LAYER_ABLATION,
    name="twin",
    seeds=(0, 1),
    changes={
        "data.num_train": 48,
        "data.num_val": 12,
        "num_steps": 12,
        "evaluate_every": 3,
        "log_every": 1,
        "optim.warmup_steps": 2,
        "method.segmentation.start_step": 4,
        "method.energy.start_step": 4,
        "evaluate.num_pictures": 0,
    },
)

main = study_command(STUDY, __doc__)

if __name__ == "__main__":
    main()
