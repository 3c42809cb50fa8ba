"""ToCo with a nano ViT on the embedded benchmark: generated scenes, no GPU, no download.

    python -m toco train shapes_nano --run-dir runs/shapes_nano

Hardware: one CPU core, about a minute, evaluation included. Expected over seeds 0, 1, 2 (mIoU in
percent on 300 generated scenes; not VOC): CAM 56.6 +- 6.1, auxiliary CAM 58.4 +- 3.8, segmentation
56.4 +- 5.1. With the classification losses alone the CAM is at 37.6 +- 4.4.
"""

from toco.backbones import vit_nano
from toco.data import ColourConfig, ViewsConfig, shapes
from toco.evaluate import EvaluateConfig
from toco.methods import toco
from toco.train.run_config import OptimConfig, RunConfig


def recipe() -> RunConfig:
    """The official recipe scaled to 64 px and to a minute."""
    colour = ColourConfig(
        jitter_probability=0.5,
        brightness=0.2,
        contrast=0.2,
        saturation=0.1,
        hue=0.0,
        grey_probability=0.0,
        blur_probability=0.0,
    )
    return RunConfig(
        # The values below were tuned on the scenes of seeds 0 and 7, and not on these.
        data=shapes.Config(seed=1),
        views=ViewsConfig(
            crop_size_px=64, rescale=(0.9, 1.2), first_view=colour, second_view=colour
        ),
        backbone=vit_nano.Config(),
        method=toco.Config(
            aux_block=9,
            cam_scales=(1.0,),
            loss_group_size=None,
            num_local_crops=4,
            local_crop_size_px=32,
            projection=toco.ProjectionConfig(
                hidden_width=128, bottleneck_width=64, output_width=128
            ),
            decoder_width=64,
            decoder_dilation=2,
            par=toco.ParConfig(dilations=(1, 2, 4)),
            ptc=toco.Term(weight=8.0),
            ctc=toco.Term(weight=0.1),
            segmentation=toco.Term(weight=0.1, start_step=80),
            energy=toco.Term(weight=0.05, start_step=80),
        ),
        optim=OptimConfig(lr=7e-4, warmup_steps=10),
        evaluate=EvaluateConfig(size_px=64, cam_scales=(1.0,), num_pictures=3, batch_size=50),
        num_steps=160,
        batch_size=16,
        evaluate_every=80,
        log_every=10,
        num_workers=0,
    )
