"""Every data set keeps the contract of the loader and of the evaluation."""

import pickle

import numpy as np
import pytest

from toco.data import DataConfig, Dataset, shapes
from toco.registry import available, load

SMALL = {"num_train": 6, "num_val": 3}


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return shapes.generated_folder(shapes.Config(root=tmp_path_factory.mktemp("generated"), **SMALL))


@pytest.fixture(params=available("toco.data"))
def config(request, generated):
    """Each on its smallest data: the generator makes its own, readers read what it made."""
    module = load("toco.data", request.param)
    assert issubclass(module.Config, DataConfig)
    settings = {"shapes": {"root": generated.parent, **SMALL}, "voc": {"root": generated, "train_list": "train"}}
    return module.Config(**settings[request.param])


@pytest.fixture
def splits(config):
    module = load("toco.data", config.name)
    return {split: module.open_split(config, split) for split in ("train", "val")}


def test_images_masks_and_labels_belong_together(splits):
    for dataset in splits.values():
        assert isinstance(dataset, Dataset)
        assert len(dataset) == len(dataset.names) == len(set(dataset.names)) > 0
        for index in range(len(dataset)):
            image, mask, labels = dataset.image(index), dataset.mask(index), dataset.class_labels(index)
            assert image.dtype == mask.dtype == np.uint8
            assert image.shape == (*mask.shape, 3)
            assert labels.dtype == np.float32
            present = {int(i) for i in np.unique(mask)} - {0, 255}
            assert {int(i) + 1 for i in np.flatnonzero(labels)} == present
            assert len(labels) == len(dataset.class_names)


def test_splits_are_apart_and_agree_on_the_classes(splits):
    assert not set(splits["train"].names) & set(splits["val"].names)
    assert splits["train"].class_names == splits["val"].class_names


def test_a_data_set_goes_to_loader_processes_and_says_what_it_is(config, splits):
    dataset = splits["train"]
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - what a loader process does
    np.testing.assert_array_equal(again.image(1), dataset.image(1))
    assert again.manifest_digest() == dataset.manifest_digest() != splits["val"].manifest_digest()
