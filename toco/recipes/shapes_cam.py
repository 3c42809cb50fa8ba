"""The plain classifier with a nano ViT on the embedded benchmark: no GPU, no download.

    python -m toco train shapes_cam --run-dir runs/shapes_cam

Hardware: one CPU core, about 20 seconds, evaluation included. Expected over the seeds 0 to 2 (mIoU
in percent on 300 generated scenes; not VOC): CAM 30.3 +- 5.2, segmentation 23.8 +- 5.5. The table
of methods has a tuned row: CAM 29.8, segmentation 23.0 over seven seeds.
"""

from toco.methods import cam
from toco.recipes import shapes_nano
from toco.train.run_config import RunConfig


def recipe() -> RunConfig:
    """Make ``shapes_nano`` without the losses of ToCo: the baseline of a table of methods."""
    nano = shapes_nano.recipe()
    common = nano.method.model_dump(include=set(cam.Config.model_fields) - {"name"})
    return nano.model_copy(update={"method": cam.Config(**common)})
