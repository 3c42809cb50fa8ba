"""A search over the method's settings: CAM and segmentation mIoU against the time of a step.

    python -m sweeps run search
    python -m sweeps run search --trials 30
    python -m sweeps run search --recipe voc_deit_b --data VOC2012 --gpus-per-trial 1 --trials 40

By default the embedded benchmark: 8 trials of one to three minutes on one core, about 10 minutes on
two; trials that are not among the better half at a rung are stopped there. Rungs lie where the
segmentation loss, which joins at step 80 of 160, has acted for one and two intervals between
evaluations (steps 100 and 120). The first trial has the recipe's own values. Raising ``--trials``
goes on with the same search. The time of a step is that of this machine with whatever else runs on
it; it is rounded to steps of 10 %, and means something only where nothing else runs. Expected on
the embedded benchmark: half of the trials stopped at a rung, and a front of some four trials with
51 to 58 % CAM mIoU and 46 to 56 % segmentation mIoU; which ones depends on what had ended when they
were proposed.

What it finds are candidates, chosen after looking at others with one seed: they belong in no
ablation table without a mark. With ``voc_deit_b`` a full training takes 3.7 hours on two A100; 40
trials are a beginning.
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
from sweeps.core.design.paper import SEG, M
from sweeps.core.design.search_space import STEP_TIME, Objective, SearchStudy
from sweeps.layer_ablation import AUX_BLOCK, PAPER_BLOCKS, PAPER_DEPTH, dimensions
from toco.registry import load

FACTOR = 4.0
"""Weights and the temperature are searched from this many times less to this many times more than the recipe's."""
EVALUATIONS = 8
"""Evaluations of a training, at least, so that there are rungs between the segmentation loss and the end."""


def space(
    weights: dict[str, float], depth: int, num_local_crops: int
) -> dict[str, BaseDistribution]:
    """Settings around a recipe's.

    Args:
        weights: Its weights and temperature, by path.
        depth: Blocks of its backbone; the auxiliary classifier reads those as far from the last as
            the paper's.
        num_local_crops: Its local crops: the setting that changes what a step costs.
    """
    around = {
        path: FloatDistribution(value / FACTOR, value * FACTOR, log=True)
        for path, value in weights.items()
    }
    shift = PAPER_DEPTH - depth
    return {
        **around,
        "method.low_threshold": FloatDistribution(0.1, 0.4),
        "method.high_threshold": FloatDistribution(0.5, 0.85),
        AUX_BLOCK: IntDistribution(min(PAPER_BLOCKS) - shift, max(PAPER_BLOCKS) - shift),
        "method.num_local_crops": CategoricalDistribution(
            [num_local_crops // 2, num_local_crops, 2 * num_local_crops]
        ),
    }


def for_recipe(study: SearchStudy) -> SearchStudy:
    """``study`` with a space around its recipe's own values, and evaluations often enough for rungs."""
    recipe = load("toco.recipes", study.recipe).recipe()
    method = recipe.method
    weights = {
        "method.ptc.weight": method.ptc.weight,
        "method.ctc.weight": method.ctc.weight,
        "method.temperature": method.temperature,
    }
    every = min(recipe.evaluate_every, max(study.base().num_steps // EVALUATIONS, 1))
    return dataclasses.replace(
        study,
        space=space(weights, dimensions(recipe).depth, method.num_local_crops),
        changes={"evaluate_every": every, **study.changes},
    )


OBJECTIVES = (
    Objective(M, "CAM mIoU"),
    Objective(SEG, "seg mIoU"),
    # Each trial's own clock, beside whatever else runs: a finer difference would put chance on the
    # front.
    Objective(STEP_TIME, "time of a step", higher_is_better=False, resolution=0.1),
)
STUDY = SearchStudy(
    name="search",
    title="Search: CAM and segmentation against cost",
    recipe="shapes_nano",
    space=space(
        {"method.ptc.weight": 0.2, "method.ctc.weight": 0.5, "method.temperature": 0.5},
        PAPER_DEPTH,
        8,
    ),
    num_trials=8,
    num_random=4,
    objectives=OBJECTIVES,
)
main = study_command(STUDY, __doc__, adapt=for_recipe)

if __name__ == "__main__":
    main()
