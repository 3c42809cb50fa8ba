"""Temperature tau of the class token contrast (CTC).

    python -m sweeps run temperature
    python -m sweeps run temperature --recipe voc_deit_b --data VOC2012 --gpus-per-trial 1

Default: the embedded benchmark. 5 temperatures and the A/A row. 4 comparisons with the base are
tested after 3, 5, 7 and 10 seeds. These are 18 to 53 trainings of half a minute on one core, about
6 minutes on two cores for the first 18.

Expected on the embedded benchmark, after 38 trainings (mIoU in percent, mean of 10, 5, 10, 5 and 5
seeds whose standard deviation is 1 to 2.5): CAM 47.9, 48.4, 48.2, 48.4, 48.4 and segmentation 48.8,
49.5, 49.2, 49.6, 49.5 for tau 0.1, 0.25, 0.5, 1, 2. None is shown to differ from 0.5: three are
given up after 5 seeds, and 0.1 (-0.3 points of CAM) is undecided after 10.

With ``voc_deit_b``: 3.7 hours on two A100 for each training, with the seeds 0, 1, 2 unless
``--sequential`` is given. The paper has no table of the temperature. It uses 0.5 for VOC.
"""

from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.paper import AUX_CAM_MIOU, CAM_MIOU, SEG_MIOU
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, Study

STUDY = Study(
    name="temperature",
    title="Temperature of the class token contrast",
    recipe="shapes_nano",
    design=OneFactor((Factor("method.temperature", (0.1, 0.25, 0.5, 1.0, 2.0), 0.5, title="tau"),)),
    seeds=Sequential(),
    metrics=(Metric(CAM_MIOU, "M"), Metric(AUX_CAM_MIOU, "M_m"), Metric(SEG_MIOU, "seg")),
    purpose="direction",
)

main = study_command(STUDY, __doc__)

if __name__ == "__main__":
    main()
