"""How many patches should a class score average?

    python -m sweeps plan own_method.study
    python -m sweeps run own_method.study

Three fractions, and max pooling again with other seeds (A/A), three seeds each: 12 trainings of a
minute or somewhat more on one core. Expected: not measured on VOC; the table of your run is the
answer.
"""

from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study

STUDY = Study(
    name="pooling",
    title="Patches that a class score pools",
    recipe="own_method.recipe",
    design=OneFactor(
        (Factor("method.pooled_fraction", (0.0, 0.1, 1.0), 0.0, ("max", "best tenth", "mean")),)
    ),
    seeds=(0, 1, 2),
    metrics=(Metric("val/cam_miou", "CAM"), Metric("val/seg_miou", "seg")),
    purpose="direction",
)

main = study_command(STUDY, __doc__)

if __name__ == "__main__":
    main()
