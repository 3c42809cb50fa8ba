"""The parts of RCA, added one at a time, and the three kinds of aggregation.

    python -m sweeps run rca_components

Each row of the ladder is compared with the row above. The first row is the classifier alone, and
the last is RCA as in the recipe. In the second block only the aggregation differs.

Default: the embedded benchmark. 5 rows, 3 further kinds of aggregation, and the A/A row; 7
comparisons are tested after 3, 5, 7 and 10 seeds. These are 27 to 83 trainings of half a minute on
one core, about 8 minutes on two cores for the first 27. The paper's own table could not be had, so
the study tests differences and no claim of the paper.

Expected on the embedded benchmark, after 73 trainings (mIoU in percent, 5 to 10 seeds with standard
deviations of 0.6 to 4.1): CAM 29.2, 28.8, 32.5, 35.3, 36.9 and segmentation 22.4, 21.9, 24.7, 34.0,
35.0 from the first row to the last. Aggregation, contrast and mix-up are shown to raise the CAM, by
3.7, 2.8 and 1.8 points; coarse maps alone are undecided after 10 seeds (-0.4). Without aggregation
the whole has 36.0, with products instead of cosines 34.1, with the linear aggregation 32.1; the
last two are shown to be worse, the first is given up.
"""

from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import Ladder, Listed, SideBySide
from sweeps.core.design.factors import Component
from sweeps.core.design.paper import AUX_CAM_MIOU, CAM_MIOU, SEG_MIOU
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, Study

KIND, TEMPERATURE = "method.aggregation.kind", "method.aggregation.temperature"
PARTS = (
    Component("coarse maps", {"method.coarse_weight": 0.0}),
    Component("aggregation", {KIND: "none", TEMPERATURE: None}),
    Component("contrast", {"method.region_contrast.weight": 0.0}),
    Component("mix-up", {"method.region_contrast.beta": None}),
)
KINDS = Listed(
    (
        ("softmax of cosines", {KIND: "softmax", TEMPERATURE: 0.1}),
        ("softmax of products", {KIND: "softmax", TEMPERATURE: None}),
        ("linear", {KIND: "linear", TEMPERATURE: None}),
        ("none", {KIND: "none", TEMPERATURE: None}),
    ),
    "aggregation",
)

STUDY = Study(
    name="rca_components",
    title="RCA: its parts, added one at a time",
    recipe="shapes_rca",
    design=SideBySide((Ladder("cls", PARTS, title="parts"), KINDS)),
    seeds=Sequential(),
    metrics=(Metric(CAM_MIOU, "M"), Metric(AUX_CAM_MIOU, "M_m"), Metric(SEG_MIOU, "seg")),
    purpose="direction",
)
main = study_command(STUDY, __doc__)

if __name__ == "__main__":
    main()
