"""The region contrast of RCA: temperature, mix-up, partner, weight, first step and regions.

    python -m sweeps run rca_contrast

One setting at a time varies around the recipe. Without ``beta`` regions are not mixed. A partner of
``any`` image and class, and regions of the ``softmax`` over the classes, are official.

Default: the embedded benchmark. 9 rows besides the base, and the A/A row; each is compared with
the base after 3, 5, 7 and 10 seeds. These are 33 to 103 trainings of half a minute on one core,
about 10 minutes on two cores for the first 33. The paper's own tables could not be had.

Expected: not measured.
"""

from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.paper import AUX_CAM_MIOU, CAM_MIOU, SEG_MIOU
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, Study

CONTRAST = "method.region_contrast"
# The values of the recipe ``shapes_rca`` are the bases.
FACTORS = (
    Factor(f"{CONTRAST}.weight", (0.08, 0.5, 2.0), 0.5),
    Factor(f"{CONTRAST}.temperature", (0.05, 0.1, 0.3), 0.1, title="tau"),
    Factor(f"{CONTRAST}.beta", (None, 1.0, 8.0), 8.0, ("no mix-up", "beta 1", "beta 8"), "mix-up"),
    Factor(f"{CONTRAST}.partner", ("other", "any"), "other"),
    Factor(f"{CONTRAST}.start_step", (40, 120), 40, title="first step"),
    Factor(f"{CONTRAST}.scores", ("softmax", "raw"), "softmax", title="scores of regions"),
)

STUDY = Study(
    name="rca_contrast",
    title="RCA: the contrast of regions",
    recipe="shapes_rca",
    design=OneFactor(FACTORS),
    seeds=Sequential(),
    metrics=(Metric(CAM_MIOU, "M"), Metric(AUX_CAM_MIOU, "M_m"), Metric(SEG_MIOU, "seg")),
    purpose="direction",
)
main = study_command(STUDY, __doc__)

if __name__ == "__main__":
    main()
