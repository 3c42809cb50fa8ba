"""RCA with a nano ViT on the embedded benchmark: generated scenes, no GPU, no download.

    python -m toco train shapes_rca --run-dir runs/shapes_rca

Hardware: one CPU core, about half a minute, evaluation included. Expected over the seeds 0 to 2
(mIoU in percent on 300 generated scenes; not VOC): CAM 36.7 +- 0.9, auxiliary CAM 50.7 +- 1.3,
segmentation 34.9 +- 0.7. The table of methods has a tuned row: CAM 40.4 at the threshold 0.72,
segmentation 34.9 over seven seeds.
"""

from toco.methods import rca
from toco.recipes import shapes_cam
from toco.train.run_config import RunConfig


def recipe() -> RunConfig:
    """Make ``shapes_nano`` with the losses of RCA in the place of ToCo's.

    Data, views, backbone, optimizer, steps, decoder and labels are those of ``shapes_nano``. Tokens
    of the last block are alike, so the coarse maps come from the same block as ToCo's auxiliary
    CAM; officially they come from the last. Classifiers are linear and pool the maximum, as in
    ToCo. The memory is small, because a class gets some hundreds of regions in a training.
    """
    plain = shapes_cam.recipe()
    method = rca.Config(
        **plain.method.model_dump(exclude={"name"}),
        aux_block=9,
        class_maps="linear",
        pooling="max",
        coarse_weight=1.0,
        region_contrast=rca.RegionContrastConfig(
            weight=0.5, start_step=40, temperature=0.1, embedding="none"
        ),
        region_memory=rca.MemoryConfig(slots=48, momentum=0.7, threshold=0.5),
        aggregation=rca.AggregationConfig(
            kind="softmax", temperature=0.1, centroids=3, every=20, num_starts=4
        ),
    )
    return plain.model_copy(update={"method": method})
