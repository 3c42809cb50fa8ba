"""ToCo with RCA's parts on the embedded benchmark: generated scenes, no GPU, no download.

    python -m toco train shapes_toco_rca --run-dir runs/shapes_toco_rca

Hardware: one CPU core, about half a minute, evaluation included. Expected over the seeds 0 to 2
(mIoU in percent on 300 generated scenes; not VOC): CAM 49.0 +- 0.4, auxiliary CAM 51.1 +- 0.9,
segmentation 50.0 +- 1.6. The table of methods has this recipe over ten seeds: CAM 50.2,
segmentation 51.3.
"""

from toco.recipes import shapes_nano, shapes_rca
from toco.train.run_config import RunConfig


def recipe() -> RunConfig:
    """Make ``shapes_nano`` with the region contrast and the aggregation of ``shapes_rca``.

    Regions come from the auxiliary classifier's maps, which are RCA's coarse maps here. The
    contrast has a fifth of the weight that it has in ``shapes_rca``.
    """
    nano, parts = shapes_nano.recipe(), shapes_rca.recipe().method
    method = nano.method.model_copy(
        update={
            "region_contrast": parts.region_contrast.model_copy(update={"weight": 0.1}),
            "region_memory": parts.region_memory,
            "aggregation": parts.aggregation,
        }
    )
    return nano.model_copy(update={"method": method})
