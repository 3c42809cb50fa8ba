"""Table 4 of the paper: the losses, added one at a time.

    python -m sweeps run components
    python -m sweeps run components --brief
    python -m sweeps run components --recipe shapes_toco_rca
    python -m sweeps run components --recipe voc_deit_b --data VOC2012 --gpus-per-trial 1

Each row is compared with the row above. In the first row the auxiliary classifier is not trained,
so the value of its column means nothing. The same holds for the decoder in the rows without the
segmentation loss.

Default: the embedded benchmark. 6 rows and the A/A row (the first row again with other seeds); four
claims of the paper are tested after 3, 5, 7 and 10 seeds. These are 21 to 56 trainings of at most
half a minute on one core, about 6 minutes on two cores for the first 21.

Expected on the embedded benchmark, after 41 trainings (mIoU in percent, mean of 3, 5, 5, 10, 10 and
5 seeds whose standard deviation is 0.4 to 5): CAM 30.1, 29.1, 48.4, 48.2, 48.2, 48.4 from the first
row to the last, auxiliary CAM 51.7, 52.1, 51.3, 51.3, 52.1 from the second row on, segmentation
49.1 and 49.6 in the last two. PTC raises the CAM by 19.3 points, which is shown after 5 seeds (p =
0.014). The segmentation loss raises it by 0.01 points, too little to matter (p = 0.033). CTC and
the regularizer are given up after 5 seeds.

With ``voc_deit_b``, the paper's own setting: at most 3.7 hours on two A100 for each training. The
seeds are 0, 1, 2 unless ``--sequential`` is given. Expected there (mIoU in percent on VOC val): CAM
27.8, 27.9, 62.5, 67.2, 69.9, 70.5 from the first row to the last, auxiliary CAM 53.8, 57.8, 60.7,
61.2, 62.5 from the second row on, segmentation 66.6 and 68.1 in the last two.

``--brief`` has three rows: the classifier alone; with the auxiliary classifier and PTC; everything.
It is for long trainings: 12 to 33 instead of 21 to 56. It tests two differences and none of the
paper's claims, which are about other pairs of rows. In one storage the whole study and the brief
one use the same trainings. With ``shapes_toco_rca`` the last row adds RCA's parts to ToCo: 2.0
points of CAM on the embedded benchmark, shown after ten seeds (p = 0.012).
"""

from __future__ import annotations

import dataclasses

import click

from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import Declared, Ladder
from sweeps.core.design.factors import Component
from sweeps.core.design.paper import AUX_CAM_MIOU, CAM_MIOU, SEG_MIOU, TABLE_4
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, Study

START = "cls"
# Without it the decoder cannot learn from its CAM first, as it does on COCO.
AUX_CLS = Component("aux cls", {"method.aux_weight": 0.0, "method.aux_pseudo_labels_until_step": 0})
PTC = Component("PTC", {"method.ptc.weight": 0.0})
CTC = Component("CTC", {"method.ctc.weight": 0.0})
SEG = Component("seg", {"method.segmentation.weight": 0.0})
REG = Component("reg", {"method.energy.weight": 0.0})
CONTRAST, KIND = "method.region_contrast.weight", "method.aggregation.kind"
RCA = Component(
    "RCA's parts", {CONTRAST: 0.0, KIND: "none", "method.aggregation.temperature": None}
)


def together(*components: Component) -> Component:
    """Make one component of several.

    >>> together(CTC, SEG).label
    'CTC, seg'
    """
    return Component(
        ", ".join(component.label for component in components),
        {path: value for component in components for path, value in component.off.items()},
    )


def design(brief: bool = False, with_rca: bool = False) -> Ladder:
    """Make the ladder of six rows, or that of three; with RCA's parts it has one row more."""
    components: tuple[Component, ...] = (AUX_CLS, PTC, CTC, SEG, REG)
    published_labels = None
    if brief:
        components = (together(AUX_CLS, PTC), together(CTC, SEG, REG))
        published_labels = {START: "cls", "+ aux cls, PTC": "+ PTC", "+ CTC, seg, reg": "+ reg"}
    if with_rca:
        components = (*components, RCA)
    return Ladder(
        START,
        components,
        title="losses",
        declared=Declared((CAM_MIOU,), TABLE_4, published_labels),
    )


STUDY = Study(
    name="components",
    title="Table 4: components, added one at a time",
    recipe="shapes_nano",
    design=design(),
    seeds=Sequential(),
    metrics=(Metric(CAM_MIOU, "M"), Metric(AUX_CAM_MIOU, "M_m"), Metric(SEG_MIOU, "seg")),
    purpose="direction",
)


def for_recipe(study: Study, brief: bool = False) -> Study:
    """Give the study three rows if ``brief``, and a last one where the recipe has RCA's parts."""
    title = "Table 4 in three rows: classifier, with PTC, everything" if brief else study.title
    with_rca = study.value(CONTRAST) > 0 or study.value(KIND) != "none"
    return dataclasses.replace(study, design=design(brief, with_rca), title=title)


main = study_command(
    STUDY,
    __doc__,
    adapt=for_recipe,
    options=[
        click.option("--brief", is_flag=True, help="Three rows instead of six: cls, + PTC, + reg.")
    ],
)

if __name__ == "__main__":
    main()
