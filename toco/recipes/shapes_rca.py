"""RCA with a nano ViT on the embedded benchmark: generated scenes, no GPU, no download.

python -m toco train shapes_rca --run-dir runs/shapes_rca

"""

from toco.methods import rca
from toco.recipes import shapes_nano
from toco.train.run_config import RunConfig


def recipe() -> RunConfig:
    """The data, views, backbone, optimizer and decoder of ``shapes_nano`` with the losses of RCA."""
    nano = shapes_nano.recipe()
    method = nano.method
    return nano.model_copy(
        update={
            "method": rca.Config(
                aux_block=9,
                loss_group_size=None,
                class_maps="linear",
                pooling="max",
                coarse_weight=1.0,
                region_contrast=rca.RegionContrastConfig(
                    weight=0.08, start_step=60, temperature=0.1, embedding="none"
                ),
                region_memory=rca.MemoryConfig(slots=48, momentum=0.7, threshold=0.5),
                aggregation=rca.AggregationConfig(kind="none", centroids=3, every=20),
                low_threshold=method.low_threshold,
                high_threshold=method.high_threshold,
                cam_scales=method.cam_scales,
                decoder_width=method.decoder_width,
                decoder_dilation=method.decoder_dilation,
                par=method.par,
                segmentation=method.segmentation,
                energy=method.energy,
            )
        }
    )
