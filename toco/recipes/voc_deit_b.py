"""ToCo with DeiT-B on PASCAL VOC 2012, as in the paper.

    python -m toco train voc_deit_b --set data.root=VOCdevkit/VOC2012 --run-dir runs/voc_deit_b

Hardware of the paper: 2 x A100-40GB with two images each, 3.7 hours.
Expected on VOC val after 20,000 steps, single scale, no CRF (last line of the authors' log):
CAM 70.5, auxiliary CAM 62.5, segmentation 68.1 mIoU.

The paper calls this network ViT-B; its "ViT-B with a dagger" is the one pretrained on ImageNet-21k.
"""

from toco.backbones import vit
from toco.data import ViewsConfig, voc
from toco.evaluate import EvaluateConfig
from toco.methods import toco
from toco.train.optim import OptimConfig
from toco.train.run_config import RunConfig


def recipe() -> RunConfig:
    """Every value is the official one; defaults are spelt out where they are part of the experiment."""
    return RunConfig(
        # The decoded images, 6 GB, are written to a file once and read by all trainings of a node.
        data=voc.Config(cache="node"),
        views=ViewsConfig(crop_size_px=448, rescale=(0.5, 2.0)),
        backbone=vit.Config(model="deit_base_patch16_224.fb_in1k"),
        method=toco.Config(
            aux_block=9,
            low_threshold=0.25,
            high_threshold=0.7,
            temperature=0.5,
            ema_decay=0.9,
            local_crop_size_px=96,
            loss_group_size=2,
            ptc=toco.Term(weight=0.2),
            ctc=toco.Term(weight=0.5),
            segmentation=toco.Term(weight=0.1, start_step=2001),
            energy=toco.Term(weight=0.05, start_step=2001),
        ),
        optim=OptimConfig(lr=6e-5, warmup_steps=1500),
        evaluate=EvaluateConfig(size_px=448, background_threshold=0.5),
        num_steps=20_000,
        batch_size=4,
        evaluate_every=2000,
    )
