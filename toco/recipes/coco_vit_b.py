"""ToCo with ViT-B, pretrained on ImageNet-21k, on MS COCO 2014, as in the paper.

    python -m toco train coco_vit_b --set data.root=coco --run-dir runs/coco_vit_b

Hardware of the paper: 4 x A100-40GB with two images each, 27.5 hours. Expected on the 5,000 images
of val_part after 80,000 steps, single scale, no CRF (last line of the authors' log; by class in
expected.csv): CAM 43.4, auxiliary CAM 41.2, segmentation 42.4 mIoU. With three scales, flip and CRF
on all 40,137 images of val (Table 2): 42.3 (42.2 in the authors' repository).

Weights: timm's ``vit_base_patch16_224.orig_in21k_ft_in1k``. The file that timm names for these
weights, and that the official code reads, is ``jx_vit_base_p16_224-80ecf9dd.pth``, whose SHA-256
begins with the digits in its name. The hub has the same tensors as safetensors. To use a local
file, set ``backbone.weights=PATH``; it must be that ``.pth`` file. Without a tag,
``vit_base_patch16_224`` is another network in timm today (``augreg2_in21k_ft_in1k``). These weights
were made with pixels normalised by 0.5 and 0.5. The official code normalises by ImageNet's mean and
deviation nevertheless, and so does this recipe.

``val_part.txt``, the list of the 5,000 images, is in ``datasets/coco`` of the authors' repository.
Copy it to the root of the data set. Up to and including step 12,000, counted from 0, the decoder
learns from the auxiliary CAM. The paper calls this network ViT-B with a dagger.
"""

from toco.backbones import vit
from toco.data import ViewsConfig, coco
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
        data=coco.Config(val_list="val_part"),
        views=ViewsConfig(crop_size_px=448, rescale=(0.5, 2.0)),
        backbone=vit.Config(
            model="vit_base_patch16_224.orig_in21k_ft_in1k",
            weights_sha256="80ecf9dd",
            pixel_mean=(0.485, 0.456, 0.406),
            pixel_std=(0.229, 0.224, 0.225),
        ),
        method=toco.Config(
            aux_block=9,
            low_threshold=0.25,
            high_threshold=0.65,
            cam_scales=(1.0, 0.5, 1.5),
            cam_flip=True,
            temperature=1.0,
            ema_decay=0.9,
            num_local_crops=8,
            local_crop_size_px=96,
            loss_group_size=2,
            ptc=toco.Term(weight=0.2, start_step=12_001),
            ctc=toco.Term(weight=0.5, start_step=12_001),
            segmentation=toco.Term(weight=0.1, start_step=8001),
            energy=toco.Term(weight=0.05, start_step=8001),
            aux_pseudo_labels_until_step=12_001,
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
            size_px=448, cam_scales=(1.0, 0.5, 1.5), cam_flip=True, background_threshold=0.45
        ),
        inference=InferenceConfig(
            size_px=448, scales=(1.0, 1.25, 1.5), flip=True, merge_flips="max", merge_scales="sum"
        ),
        num_steps=80_000,
        batch_size=8,
        evaluate_every=4000,
    )
