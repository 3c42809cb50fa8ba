"""CAM thresholds of the training (low x high) and of the evaluation.

    python -m sweeps run cam_thresholds
    python -m sweeps run cam_thresholds --recipe voc_deit_b --data VOC2012 --gpus-per-trial 1

Below ``low`` a patch is background, above ``high`` foreground. The two decide which patches PTC
pairs, which crops CTC takes as background, and what the decoder learns from. All nine combinations
are trained. The background threshold of the evaluation only affects how a CAM is read: its rows are
evaluations of the base's trainings.

Default: the embedded benchmark. 9 combinations and the A/A row. 12 comparisons with the base are
tested after 3, 5, 7 and 10 seeds. These are 30 to 93 trainings of half a minute on one core, about
9 minutes on two cores for the first 30, and 12 to 40 evaluations.

Expected on the embedded benchmark, after 76 trainings (mIoU in percent, 5 to 10 seeds with standard
deviations of 1.0 to 2.2): CAM 45.6, 47.3, 48.5 for a low threshold of 0.3, 47.0, 48.2, 48.9 for
0.4 and 47.8, 49.0, 49.3 for 0.5, each with the high thresholds 0.55, 0.65, 0.75. All differences to
the base are shown but that of 0.3 and 0.75. Background thresholds of 0.3 to 0.7 give a CAM of 42.2,
46.4, 48.2, 47.7 and 44.6.

With ``voc_deit_b``: 3.7 hours on two A100 for each training, with the seeds 0, 1, 2 unless
``--sequential`` is given. The paper has no table of these thresholds. It uses 0.25 and 0.7 for VOC,
and 0.5 for the evaluation.
"""

from __future__ import annotations

import dataclasses

from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import Grid, OneFactor, SideBySide
from sweeps.core.design.factors import Factor
from sweeps.core.design.paper import AUX_CAM_MIOU, CAM_MIOU, SEG_MIOU
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, Study

LOW, HIGH = "method.low_threshold", "method.high_threshold"
# The thresholds of the recipe ``shapes_nano``.
NANO_LOW, NANO_HIGH = 0.4, 0.65


def design(low: float, high: float) -> SideBySide:
    """Make the grid of thresholds around ``low`` and ``high``, beside that of the evaluation.

    The grid has each threshold, 0.1 less and 0.1 more.

    >>> [factor.values for factor in design(0.25, 0.7).designs[0].factors]
    [(0.15, 0.25, 0.35), (0.6, 0.7, 0.8)]
    """
    return SideBySide(
        (
            Grid(
                (
                    Factor(LOW, _around(low), low, title="low"),
                    Factor(HIGH, _around(high), high, title="high"),
                )
            ),
            OneFactor(
                (
                    Factor(
                        "evaluate.background_threshold",
                        (0.3, 0.4, 0.5, 0.6, 0.7),
                        0.5,
                        title="background threshold",
                    ),
                )
            ),
        )
    )


def _around(threshold: float) -> tuple[float, ...]:
    return tuple(round(threshold + change, 4) for change in (-0.1, 0, 0.1))


STUDY = Study(
    name="cam_thresholds",
    title="Thresholds of the CAM in training (low x high) and in the evaluation",
    recipe="shapes_nano",
    design=design(NANO_LOW, NANO_HIGH),
    seeds=Sequential(),
    metrics=(Metric(CAM_MIOU, "M"), Metric(AUX_CAM_MIOU, "M_m"), Metric(SEG_MIOU, "seg")),
    purpose="direction",
)


def for_recipe(study: Study) -> Study:
    """Centre the study on the thresholds of its recipe."""
    return dataclasses.replace(study, design=design(study.value(LOW), study.value(HIGH)))


main = study_command(STUDY, __doc__, adapt=for_recipe)

if __name__ == "__main__":
    main()
