"""ToCo with DeiT-B on PASCAL VOC 2012, as in the paper.

    python -m toco train voc_deit_b --set data.root=VOCdevkit/VOC2012 --run-dir runs/voc_deit_b

Hardware of the paper: 2 x A100-40GB with two images each, 3.7 hours. Expected on VOC val after
20,000 steps, single scale, no CRF (last line of the authors' log; by class in expected.csv): CAM
70.5, auxiliary CAM 62.5, segmentation 68.1 mIoU. With three scales, flip and CRF (Table 2): 69.8 on
val, 70.5 on test.

Weights: timm's ``deit_base_patch16_224.fb_in1k``. The file that timm names for these weights, and
that the official code reads, is ``deit_base_patch16_224-b5f2ef4d.pth``, whose SHA-256 begins with
those digits. The hub has the same tensors as safetensors. To use a local file, set
``backbone.weights=PATH``; it must be that ``.pth`` file.

The paper calls this network ViT-B; its "ViT-B with a dagger" is the one pretrained on ImageNet-21k.
"""

from toco.backbones import vit
from toco.data import ViewsConfig, voc
from toco.evaluate import EvaluateConfig
from toco.methods import toco
from toco.predict.config import InferenceConfig
from toco.train.optim_config import AdamWConfig
from toco.train.run_config import RunConfig


def recipe() -> RunConfig:
    """The official values, except for two corrected quirks and the filter of the energy.

    All three are defaults, which no line below sets. The corrections are ``aligned`` of
    views.view_geometry and ``scaled`` of method.token_box; ``official`` undoes each. The official
    filter is the lattice. ``auto`` of method.dense_energy.filter_name is exact on CUDA; for the
    official filter, set it to ``lattice``. Below, ``toco`` is the module of the method.
    """
    return RunConfig(
        # The decoded images, 6 GB, are written to a file once and read by all trainings of a node.
        data=voc.Config(train_list="train_aug", val_list="val", cache="node"),
        views=ViewsConfig(crop_size_px=448, rescale=(0.5, 2.0)),
        backbone=vit.Config(
            model="deit_base_patch16_224.fb_in1k",
            weights_sha256="b5f2ef4d",
            pixel_mean=(0.485, 0.456, 0.406),
            pixel_std=(0.229, 0.224, 0.225),
        ),
        method=toco.Config(
            aux_block=9,
            low_threshold=0.25,
            high_threshold=0.7,
            cam_scales=(1.0, 0.5, 1.5),
            cam_flip=True,
            temperature=0.5,
            ema_decay=0.9,
            num_local_crops=8,
            local_crop_size_px=96,
            loss_group_size=2,
            ptc=toco.Term(weight=0.2),
            ctc=toco.Term(weight=0.5),
            segmentation=toco.Term(weight=0.1, start_step=2001),
            energy=toco.Term(weight=0.05, start_step=2001),
        ),
        optim=AdamWConfig(
            lr=6e-5,
            head_lr_multiplier=10.0,
            weight_decay=0.01,
            warmup_steps=1500,
            warmup_ratio=1e-6,
            power=0.9,
        ),
        evaluate=EvaluateConfig(
            size_px=448, cam_scales=(1.0, 0.5, 1.5), cam_flip=True, background_threshold=0.5
        ),
        # The scales are in the order of the official script.
        inference=InferenceConfig(
            scales=(1.0, 1.5, 1.25), flip=True, merge_flips="sum", merge_scales="max"
        ),
        num_steps=20_000,
        batch_size=4,
        evaluate_every=2000,
    )
