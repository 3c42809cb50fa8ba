"""A sequential study of short trainings as a command: python twin_study.py --storage FOLDER.

Two rows with looks after 2 and 4 seeds, eight trainings. With more than three kills in
``TOCO_KILLS``, the whole Table 5 with looks after 2 and 3 seeds, 22 to 32 trainings.

The test runs the study without Ray and without a kill first, with every check of its config.
"""

import dataclasses
import os
from contextlib import contextmanager

from fake_backend import InProcess
from fake_store import FakeStore
from ray_drivers import refuse_to_time, trust_trainings

from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.seeds import Sequential
from sweeps.core.plan import plan_text, ray_environment
from sweeps.core.plan.launch_options import Launch
from sweeps.core.run import start
from sweeps.layer_ablation import AUX_BLOCK
from sweeps.table5 import STUDY as TABLE_5

KILLS = int(os.environ.get("TOCO_KILLS", "3"))
LOOKS = (2, 3) if KILLS > 3 else (2, 4)
TWO_ROWS = OneFactor((Factor(AUX_BLOCK, (9, 10), labels=("#10", "#11")),))

STUDY = dataclasses.replace(
    TABLE_5,
    name="twin",
    design=TABLE_5.design if KILLS > 3 else TWO_ROWS,
    # Such short trainings hardly depend on their seed, so that two seeds show much. Little error is
    # spent on them, and there is a second look.
    seeds=Sequential(LOOKS, spending=12.0, futility=None),
    repeat_base=KILLS > 3,
    changes={
        "data.num_train": 16,
        "data.num_val": 4,
        "batch_size": 4,
        "num_steps": 6,
        "evaluate_every": 3,
        "log_every": 1,
        "optim.warmup_steps": 1,
        "method.ptc.start_step": 0,
        "method.ctc.start_step": 0,
        "method.segmentation.start_step": 3,
        "method.energy.start_step": 3,
        "evaluate.num_pictures": 0,
    },
)


@contextmanager
def connect(launch):
    """Connect to a Ray whose killed head is given up soon; test_ray_tune.py has the patience of
    users.
    """
    ray_environment.prepare("local")
    # Ray reads its environment on import.
    from sweeps.core.run import ray_cluster

    # A killed head refuses connections at once; a busy one takes them.
    ray_cluster.PATIENCE_S = 6.0
    with start.connect_to_ray(launch) as backend:
        yield backend


def run_without_ray(storage):
    """Run the study in this process, without a kill and without MLflow; return the exit status."""
    start.Tracker = FakeStore
    plan_text.probe = refuse_to_time
    return start.run_study(STUDY, Launch(storage), InProcess().connect)


main = study_command(STUDY, __doc__, connect=connect)

if __name__ == "__main__":
    trust_trainings()
    main()
