"""Search over the method's settings: CAM and segmentation mIoU against the time of a step.

    python -m sweeps run search
    python -m sweeps run search --trials 30
    python -m sweeps run search --recipe voc_deit_b --data VOC2012 --gpus-per-trial 1 --trials 40

Default: the embedded benchmark. 8 trials of about a minute on one core, about 4 minutes on two
cores. The first trial has the recipe's own values. A larger ``--trials`` continues the same
search.

At a rung, trials that are not in the better half are stopped. The segmentation loss starts at step
180 of 360. Rungs lie where it has acted for one and for two intervals between evaluations, at the
steps 225 and 270.

The time of a step includes the effect of everything else that runs on the machine. It is rounded to
steps of 10 %, and is only meaningful on a machine without other work.

Expected on the embedded benchmark, in one run: two of the 8 trials were stopped at a rung. The
Pareto front had the recipe's own settings (48.8 % CAM mIoU, 50.8 % segmentation mIoU) and a cheaper
trial (46.4 and 45.4 %). Which trials are on the front depends on the results that were known when
they were proposed.

The front holds candidates, chosen after looking at others, with one seed each. They belong in no
ablation table without a mark. With ``voc_deit_b`` a full training takes 3.7 hours on two A100, and
40 trials are only a beginning.
"""

from __future__ import annotations

import dataclasses

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from sweeps.core.commands.command import study_command
from sweeps.core.design.factors import lacking
from sweeps.core.design.paper import CAM_MIOU, SEG_MIOU
from sweeps.core.design.search_space import STEP_TIME, Objective, SearchStudy
from sweeps.layer_ablation import AUX_BLOCK, PAPER_BLOCKS, PAPER_DEPTH, dimensions
from toco.config import flatten

FACTOR = 4.0
"""Weights and temperature are searched from the recipe's value divided by this to times this."""
WEIGHTS = ("method.ptc.weight", "method.ctc.weight", "method.temperature")
NUM_LOCAL_CROPS = "method.num_local_crops"
EVALUATIONS = 8
"""Least number of evaluations of a training.

It leaves room for rungs between the start of the segmentation loss and the end.
"""


def space(
    weights: dict[str, float], depth: int, num_local_crops: int
) -> dict[str, BaseDistribution]:
    """Make the space of settings around a recipe's values.

    Args:
        weights: The recipe's loss weights and temperature, by path.
        depth: Number of blocks of the backbone. The auxiliary classifier reads blocks with the same
            distances from the last block as the paper's.
        num_local_crops: The recipe's number of local crops, the setting that changes the cost of a
            step.
    """
    weight_space = {
        path: FloatDistribution(value / FACTOR, value * FACTOR, log=True)
        for path, value in weights.items()
    }
    shift = PAPER_DEPTH - depth
    return {
        **weight_space,
        "method.low_threshold": FloatDistribution(0.1, 0.5),
        "method.high_threshold": FloatDistribution(0.5, 0.85),
        AUX_BLOCK: IntDistribution(min(PAPER_BLOCKS) - shift, max(PAPER_BLOCKS) - shift),
        NUM_LOCAL_CROPS: CategoricalDistribution(
            [num_local_crops // 2, num_local_crops, 2 * num_local_crops]
        ),
    }


def for_recipe(study: SearchStudy) -> SearchStudy:
    """Centre the space on the recipe's values, and evaluate often enough for rungs.

    Raises:
        ValueError: The method of the recipe lacks a setting of the space.
    """
    base = study.base()
    settings = flatten(base)
    for path in (*WEIGHTS, NUM_LOCAL_CROPS):
        if path not in settings:
            raise lacking(study.name, path, base)
    every = min(base.evaluate_every, max(base.num_steps // EVALUATIONS, 1))
    return dataclasses.replace(
        study,
        space=space(
            {path: settings[path] for path in WEIGHTS},
            dimensions(base).depth,
            settings[NUM_LOCAL_CROPS],
        ),
        changes={"evaluate_every": every, **study.changes},
    )


OBJECTIVES = (
    Objective(CAM_MIOU, "CAM mIoU"),
    Objective(SEG_MIOU, "seg mIoU"),
    # Each trial measures its own time, disturbed by other work on the machine. A finer resolution
    # would let chance decide the front.
    Objective(STEP_TIME, "time of a step", higher_is_better=False, resolution=0.1),
)
STUDY = SearchStudy(
    name="search",
    title="Search: CAM and segmentation against cost",
    recipe="shapes_nano",
    space=space(dict(zip(WEIGHTS, (0.2, 0.5, 0.5), strict=True)), PAPER_DEPTH, 8),
    num_trials=8,
    num_random=4,
    objectives=OBJECTIVES,
)
main = study_command(STUDY, __doc__, adapt=for_recipe)

if __name__ == "__main__":
    main()
