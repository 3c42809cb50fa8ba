"""A data set in memory and a method that can be read off the pixels: every score can be computed by
hand.
"""

import hashlib

import numpy as np
import pytest
import torch

from toco.data import Dataset
from toco.data.views.normalise import denormalise_255
from toco.methods import Method
from toco.tensors import Cams, Prediction


class ArrayDataset(Dataset):
    def __init__(self, images, masks, class_names=("cat", "dog")):
        self.images, self.masks, self.class_names = images, masks, class_names
        self.names = tuple(f"image{i}" for i in range(len(images)))

    def image(self, index):
        return self.images[index]

    def image_sha256(self, index):
        return hashlib.sha256(self.images[index].tobytes()).hexdigest()

    def class_labels(self, index):
        return np.isin(np.arange(1, len(self.class_names) + 1), self.masks[index]).astype(
            np.float32
        )

    def mask(self, index):
        if self.masks[index] is None:
            raise LookupError("There is no such file.")
        return self.masks[index]

    def manifest_digest(self):
        return ""


class PixelMethod(Method):
    """Red is the CAM of the cat and green that of the dog; the auxiliary CAM is the inverse; blue
    is background.
    """

    def __init__(self):
        super().__init__()
        self.num_foreground_classes = 2
        self.patch_size_px = 1
        self.calls = []
        self.present = []

    def cams(self, images, scales, flip, present=None):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.calls.append((tuple(images.shape), tuple(scales), flip))
        cam = denormalise_255(images, truncate=False)[:, :2] / 255
        if present is not None:
            self.present.append(present)
            cam = cam.take_along_dim(present[:, :, None, None], 1)
        return Cams(cam, {"aux_cam": 1 - cam})

    def predict(self, images, scales, flip, present=None):
        batch = len(images)
        return Prediction(
            cams=self.cams(images, scales, flip, present),
            class_logits=images[:, :2].amax((2, 3)),
            segmentation_logits=denormalise_255(images, truncate=False)[:, [2, 0, 1]],
            block_tokens=(torch.eye(3).expand(batch, 3, 3), torch.ones(batch, 3, 2)),
        )

    def segmentation_logits(self, images):
        return denormalise_255(images, truncate=False)[:, [2, 0, 1]]

    def pseudo_labels(self, images, class_labels, valid_box=None):
        return images[:, :2].argmax(1) + 1

    def training_losses(self, batch, step, generator):
        raise NotImplementedError

    def parameter_groups(self):
        raise NotImplementedError

    def compile_step(self):
        raise NotImplementedError


@pytest.fixture
def method():
    return PixelMethod()


@pytest.fixture
def dataset_of():
    return ArrayDataset


@pytest.fixture
def random_dataset():
    """Images of different sizes, and masks with voids, drawn from a seed."""

    def make(sizes, seed=0):
        rng = np.random.default_rng(seed)
        images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
        masks = [rng.choice(np.array([0, 1, 2, 255], dtype=np.uint8), size) for size in sizes]
        return ArrayDataset(images, masks)

    return make
