"""ToCo with ViT-S of DINOv2 on a few PASCAL VOC photographs, without a big GPU.

    python -m toco train voc_dinov2_s --set data.root=VOC2012 --run-dir runs/voc_dinov2_s

Hardware: one core of an AMD EPYC processor, 13 minutes with an evaluation on 190 images. Expected
with the weights of a saliency detector on a DINOv2 backbone, and 271 images of VOC (mIoU in percent
on 190 images, seeds 0 to 2): CAM 18.8 +- 2.4, auxiliary CAM 17.2 +- 0.5, segmentation 7.7 +- 1.7.
docs/photographs.md says what these numbers are not. VOC's own lists and DINOv2's own weights were
not tried; longer lists need more steps.

Weights: timm's ``vit_small_patch14_dinov2.lvd142m``. The file that timm names for these weights is
``dinov2_vits14_pretrain.pth``, whose SHA-256 begins with ``b938bf1b``. The hub has the same tensors
as safetensors. To use another file, set ``backbone.weights=PATH`` and
``backbone.weights_sha256=null``.
"""

from toco.backbones import vit
from toco.data import ViewsConfig, voc
from toco.evaluate import EvaluateConfig
from toco.methods import toco
from toco.predict.config import InferenceConfig
from toco.train.optim_config import AdamWConfig
from toco.train.run_config import RunConfig


def recipe() -> RunConfig:
    """The official losses with settings for 224 px, one CPU core and few images.

    Blocks #1 to #7 are frozen. With a weight of 0.5 and a projection of 1024, 256 and 512 channels
    CTC diverged at head rates of 50 and of 300 times ``lr``. Weight and projection are smaller
    here; neither change was tried alone. Dilations and the kernel of the energy are the official
    ones, which were chosen for 448 px.
    """
    return RunConfig(
        # Decoded images are written to a file once and read by all trainings of a node.
        data=voc.Config(train_list="train", val_list="val", cache="node"),
        # At 224 px these factors show as much of a photograph as 0.8 to 1.8 at 448 px.
        views=ViewsConfig(crop_size_px=224, rescale=(0.4, 0.9)),
        backbone=vit.Config(
            model="vit_small_patch14_dinov2.lvd142m",
            weights_sha256="b938bf1b",
            pixel_mean=(0.485, 0.456, 0.406),
            pixel_std=(0.229, 0.224, 0.225),
        ),
        method=toco.Config(
            aux_block=9,
            low_threshold=0.25,
            high_threshold=0.7,
            cam_scales=(1.0,),
            cam_flip=False,
            temperature=0.5,
            ema_decay=0.9,
            num_local_crops=4,
            local_crop_size_px=70,
            loss_group_size=2,
            projection=toco.ProjectionConfig(
                hidden_width=512, bottleneck_width=64, output_width=128
            ),
            decoder_width=128,
            decoder_dilation=5,
            par=toco.ParConfig(dilations=(1, 2, 4, 8, 12, 24)),
            dense_energy=toco.DenseEnergyConfig(sigma_rgb=15.0, sigma_xy=100.0, scale=0.5),
            ptc=toco.Term(weight=0.2, start_step=50),
            ctc=toco.Term(weight=0.1, start_step=50),
            segmentation=toco.Term(weight=0.1, start_step=200),
            energy=toco.Term(weight=0.05, start_step=200),
        ),
        optim=AdamWConfig(
            lr=3e-5,
            head_lr_multiplier=300.0,
            layer_decay=0.7,
            frozen_layers=8,
            weight_decay=0.01,
            warmup_steps=50,
            warmup_ratio=1e-6,
            power=0.9,
        ),
        evaluate=EvaluateConfig(
            size_px=224, cam_scales=(1.0,), cam_flip=False, background_threshold=0.5
        ),
        inference=InferenceConfig(size_px=224, scales=(1.0,), flip=True, merge_flips="sum"),
        num_steps=400,
        batch_size=8,
        precision="bfloat16",
        evaluate_every=400,
        num_workers=0,
    )
