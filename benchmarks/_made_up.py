"""Made-up data of benchmarks: recipes with random weights, a batch, a folder like VOC's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from toco.config import replace
from toco.data.views.normalise import normalise
from toco.recipes import shapes_nano, voc_deit_b
from toco.tensors import Batch, present_classes
from toco.train.run_config import RunConfig
from toco.types import IGNORE_INDEX

NANO = "nano"
ALIASES = {"vit_small": "vit_small_patch16_224", "vit_base": "vit_base_patch16_224"}
PHOTOGRAPH = (375, 500)
"""Height and width of most images of VOC."""
_BLOCK_PX = 25  # side of a block of one colour before smoothing
_NOISE = 12  # standard deviation in levels; gives files about the size of VOC's


def recipe_of(backbone: str) -> RunConfig:
    """Return the recipe of ``nano``, or of a ViT of timm on VOC, with random weights."""
    if backbone == NANO:
        return replace(shapes_nano.recipe(), {"backbone.weights": None})
    return replace(
        voc_deit_b.recipe(),
        {"backbone.model": ALIASES.get(backbone, backbone), "backbone.weights": None},
    )


def num_foreground_classes_of(backbone: str) -> int:
    """Return the number of foreground classes in the data of :func:`recipe_of`."""
    return 8 if backbone == NANO else 20


def generated_batch(num_images: int, size_px: int, num_foreground_classes: int, seed: int) -> Batch:
    """Generate a batch of smooth images with one to three classes each, as in VOC.

    The right quarter of the first image is black padding.
    """
    generator = torch.Generator().manual_seed(seed)
    views = []
    for _ in range(3):
        coarse = torch.rand(
            num_images, 3, max(size_px // 32, 2), max(size_px // 32, 2), generator=generator
        )
        smooth = F.interpolate(coarse, size=(size_px, size_px), mode="bicubic", align_corners=False)
        noise = 0.02 * torch.randn(num_images, 3, size_px, size_px, generator=generator)
        views.append(((smooth + noise).clamp(0, 1) * 255).to(torch.uint8))
    valid_box = torch.tensor([[0, size_px, 0, size_px]]).repeat(num_images, 1)
    valid_box[0, 3] = size_px - size_px // 4
    views[0][0, :, :, valid_box[0, 3] :] = 0
    class_labels = torch.zeros(num_images, num_foreground_classes)
    for index in range(num_images):
        classes = torch.randperm(num_foreground_classes, generator=generator)[: 1 + index % 3]
        class_labels[index, classes] = 1
    return Batch(
        images=normalise(views[0]),
        second_view=normalise(views[1]),
        crop_source=normalise(views[2]),
        class_labels=class_labels,
        valid_box=valid_box,
        names=tuple(f"generated {index}" for index in range(num_images)),
        present=present_classes(class_labels),
    )


def write_voc_folder(
    root: Path, num: int, sizes: Sequence[tuple[int, int]] = (PHOTOGRAPH,)
) -> None:
    """Write JPEG files like photographs and masks of one to three classes with void, as ``train``.

    Args:
        root: The folder, without any of these files.
        num: Number of images.
        sizes: Heights and widths of the images, in turn.
    """
    rng = np.random.default_rng(0)
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    names = [f"photo_{index:04d}" for index in range(num)]
    for index, name in enumerate(names):
        height, width = sizes[index % len(sizes)]
        blocks = rng.integers(0, 256, (height // _BLOCK_PX, width // _BLOCK_PX, 3), dtype=np.uint8)
        smooth = np.asarray(
            Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)
        )
        noisy = np.clip(smooth + rng.normal(0, _NOISE, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / f"JPEGImages/{name}.jpg", quality=90)
        classes = rng.choice(
            np.arange(1, 21), rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]), replace=False
        )
        mask = Image.fromarray(
            rng.choice([0, 0, 0, IGNORE_INDEX, *classes], (32, 32)).astype(np.uint8)
        )
        mask.resize((width, height), Image.Resampling.NEAREST).save(
            root / f"SegmentationClass/{name}.png"
        )
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n")
