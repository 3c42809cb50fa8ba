"""Table 5 with trainings of a few seconds, as a command: python twin_study.py --storage FOLDER."""

import dataclasses

from sweeps.core.commands.command import study_command
from sweeps.table5 import STUDY as TABLE_5

STUDY = dataclasses.replace(
    TABLE_5,
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
