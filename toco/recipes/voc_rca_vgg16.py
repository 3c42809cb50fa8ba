"""RCA with VGG16 on PASCAL VOC 2012: the classifier that the official script trains.

    python -m toco train voc_rca_vgg16 --set data.root=VOCdevkit/VOC2012 --run-dir runs/voc_rca

Hardware: never run on VOC, so hours are unknown. It takes one GPU, because the 8 images of a batch
are one loss group; the authors name four V100 of 32 GB. In float32 a step takes 18 TFLOP, the whole
training 720 000. Weights (170 million), gradients, momentum and what a step keeps for its backward
pass take 6.2 GB, without workspaces. All these numbers are calculated.

Expected: not measured. No mIoU of these maps was published. The authors' numbers are of a later
stage, and here for context alone: 71.1 mIoU on VOC val and 71.6 on test. They belong to a ResNet101
DeepLabV2 that learnt pseudo labels of RCA on OAA, made with saliency maps; they were read in Table
4 of Chen and Sun, CVPR 2023. Pseudo labels on the train images: a user's own training gave 64 mIoU;
the labels that the authors uploaded score 70 and 73.2 by the scripts of two users.

Never released: a trained network, inference, the variant with ResNet38 on EPS, the settings for
COCO, the saliency maps, and the second stage. So there is no decoder here, and CAMs alone are
evaluated. ``method.segmentation.weight=0.1`` adds ToCo's decoder. docs/parity.md lists how code and
paper of RCA differ.

Weights: timm's ``vgg16.tv_in1k``, which are torchvision's. The file that torchvision names for them
is ``vgg16-397923af.pth``, whose SHA-256 begins with those digits. The hub has the same tensors as
safetensors. To use a local file, set ``backbone.weights=PATH``; it must be that ``.pth`` file.
"""

from toco.backbones import vgg16
from toco.data import ColourConfig, ViewsConfig, voc
from toco.evaluate import EvaluateConfig
from toco.methods import rca
from toco.train.optim_config import SgdConfig
from toco.train.run_config import RunConfig

_EPOCH = 10_582 // 8
"""Steps of an epoch: ``train_aug`` has 10 582 images, and an epoch has whole batches of 8 alone."""


def recipe() -> RunConfig:
    """The official values; where paper and code of RCA differ, those of the code.

    Steps: official epochs have 1 323 steps, because their last batch has 6 images. Here they have
    1 322. Everything happens at the boundary of an epoch, so epochs are kept and steps are counted
    anew: 39 660 in the place of 39 690.

    Order: officially the images are not shuffled, so that accumulated maps find their images. The
    same eight neighbours are a batch in every epoch, and partners of the contrast are among them.
    ``shuffle=false`` keeps that; the last 6 images of the list are then never seen. With
    ``shuffle=true`` both change.

    Groups: partners, and the statistics of the embedding's batch norm, come from 8 images, as on
    one GPU officially. On the authors' four GPUs they came from 2.

    Evaluation: officially none. It is ours, with what a training sees: images squashed to 368 px,
    one scale, no mirror image. ToCo's recipes take 448 px, three scales and mirror images.
    """
    return RunConfig(
        # The decoded images, 6 GB, are written to a file once and read by all trainings of a node.
        data=voc.Config(train_list="train_aug", val_list="val", cache="node"),
        views=ViewsConfig(
            view_geometry="squash",
            crop_size_px=368,
            rescale=(1.0, 1.0),
            flip_probability=0.0,
            first_view=ColourConfig(
                jitter_probability=1.0,
                brightness=0.3,
                contrast=0.3,
                saturation=0.3,
                hue=0.1,
                grey_probability=0.0,
                blur_probability=0.0,
            ),
        ),
        backbone=vgg16.Config(
            model="vgg16.tv_in1k",
            weights_sha256="397923af",
            pixel_mean=(0.485, 0.456, 0.406),
            pixel_std=(0.229, 0.224, 0.225),
        ),
        method=rca.Config(
            loss_group_size=8,
            aux_block=None,
            class_maps="convs",
            pooling="mean",
            coarse_weight=0.4,
            region_contrast=rca.RegionContrastConfig(
                # Officially 0.01, of the sum over the 8 images of one GPU. This is a mean.
                weight=0.08,
                start_step=2 * _EPOCH,
                temperature=0.07,
                beta=8.0,
                partner="any",
                embedding="convs",
                scores="softmax",
            ),
            region_memory=rca.MemoryConfig(
                slots=500,
                momentum=0.99,
                threshold=0.7,
                start="noise",
                holds="features",
                tokens="final",
                own_masks=False,
            ),
            aggregation=rca.AggregationConfig(
                kind="linear",
                centroids=10,
                every=_EPOCH,
                num_starts=10,
                max_iterations=300,
                rate="backbone",
            ),
            segmentation=rca.Term(weight=0.0),
            energy=rca.Term(weight=0.0),
            cam_scales=(1.0,),
            cam_flip=False,
        ),
        optim=SgdConfig(
            lr=1e-3,
            head_lr_multiplier=10.0,
            bias_lr_multiplier=2.0,
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
            drop_steps=(5 * _EPOCH, 10 * _EPOCH),
            drop_factor=0.1,
        ),
        evaluate=EvaluateConfig(
            size_px=368, cam_scales=(1.0,), cam_flip=False, background_threshold=0.5
        ),
        num_steps=30 * _EPOCH,
        batch_size=8,
        shuffle=False,
        evaluate_every=5 * _EPOCH,
    )
