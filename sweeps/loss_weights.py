"""Weights of the contrastive losses, lambda1 (PTC) x lambda2 (CTC).

    python -m sweeps run loss_weights
    python -m sweeps run loss_weights --recipe voc_deit_b --data VOC2012 --gpus-per-trial 1

Each weight is half, once and twice the weight of the recipe.

Default: the embedded benchmark, lambda1 in 10, 20, 40 and lambda2 in 0.05, 0.1, 0.2. 9 combinations
and the A/A row. 8 comparisons with the base are tested after 3, 5, 7 and 10 seeds. These are 30 to
93 trainings of half a minute on one core, about 9 minutes on two cores for the first 30.

Expected on the embedded benchmark, after 79 trainings (mIoU in percent, 5 to 10 seeds with standard
deviations of 1.2 to 1.7): CAM 46.7 to 46.9 with half the weight of PTC, 48.1 to 48.4 with the
recipe's, 48.5 to 48.7 with twice this weight. Half the weight costs 1.4 to 1.6 points, twice the
weight adds 0.4, and all six differences are shown. No effect of lambda2 is shown: 0.0 and -0.1
points with the recipe's lambda1.

With ``voc_deit_b``, lambda1 in 0.1, 0.2, 0.4 and lambda2 in 0.25, 0.5, 1: 3.7 hours on two A100 for
each training, with the seeds 0, 1, 2 unless ``--sequential`` is given.
"""

from __future__ import annotations

import dataclasses

from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import Grid
from sweeps.core.design.factors import Factor
from sweeps.core.design.paper import AUX_CAM_MIOU, CAM_MIOU, SEG_MIOU
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, Study

PTC, CTC = "method.ptc.weight", "method.ctc.weight"
# The weights of the recipe ``shapes_nano``.
NANO_PTC, NANO_CTC = 20.0, 0.1


def design(ptc: float, ctc: float) -> Grid:
    """Make the grid of half, once and twice these weights."""
    return Grid(
        (
            Factor(PTC, (ptc / 2, ptc, 2 * ptc), ptc, title="lambda1"),
            Factor(CTC, (ctc / 2, ctc, 2 * ctc), ctc, title="lambda2"),
        )
    )


STUDY = Study(
    name="loss_weights",
    title="Weights of the contrasts: lambda1 (PTC) x lambda2 (CTC)",
    recipe="shapes_nano",
    design=design(NANO_PTC, NANO_CTC),
    seeds=Sequential(),
    metrics=(Metric(CAM_MIOU, "M"), Metric(AUX_CAM_MIOU, "M_m"), Metric(SEG_MIOU, "seg")),
    purpose="direction",
)


def for_recipe(study: Study) -> Study:
    """Centre the study on the weights of its recipe."""
    return dataclasses.replace(study, design=design(study.value(PTC), study.value(CTC)))


main = study_command(STUDY, __doc__, adapt=for_recipe)

if __name__ == "__main__":
    main()
