"""A short study whose trainings write a line for each update that they compute."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study
from toco.train import loop
from toco.train.run_config import RunConfig

UPDATES = "TOCO_UPDATES"
"""Variable with the file that the trainings append to: process, training, step."""

STUDY = Study(
    name="preempted",
    title="A study that is preempted again and again",
    recipe="shapes_nano",
    design=OneFactor((Factor("method.aux_block", (8, 9)),)),
    seeds=(0, 1),
    metrics=(Metric("val/cam_miou", "M"), Metric("val/seg_miou", "seg")),
    # Evaluations take a good part of the time, so that preemptions meet them, too.
    changes={"evaluate.batch_size": 4, "num_steps": 400, "evaluate_every": 20, "log_every": 10},
    purpose="direction",
    repeat_base=False,
    train="benchmarks._preempted_study:train_recording_updates",
)


def train_recording_updates(config: RunConfig, run_dir: Path, **options: Any) -> loop.Result:  # noqa: ANN401 - those of train
    """Train, and write a line for every update."""
    update = loop._Run._update

    def recorded(run: loop._Run, *arguments: Any) -> None:  # noqa: ANN401 - those of _update
        update(run, *arguments)
        with Path(os.environ[UPDATES]).open("a") as file:
            file.write(f"{os.environ['TOCO_SESSION']} {run_dir.name} {run.step}\n")

    with patch.object(loop._Run, "_update", recorded):
        return loop.train(config, run_dir, **options)


main = study_command(STUDY, __doc__)

if __name__ == "__main__":
    main()
