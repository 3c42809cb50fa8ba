"""Every data set keeps the contract of the loader and of the evaluation."""

import pickle
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from tests.data.coco_folder import TRAIN, make_coco
from toco.__main__ import main
from toco.data import DataConfig, Dataset, shapes
from toco.registry import available, load

SMALL = {"num_train": 6, "num_val": 3}


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return shapes.generated_folder(
        shapes.Config(root=tmp_path_factory.mktemp("generated"), **SMALL)
    )


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = make_coco(
        tmp_path_factory.mktemp("coco") / "coco", TRAIN[:5]
    )  # a label hidden in the mask is left out
    CliRunner().invoke(
        main, ["data", "prepare-coco", str(root), "--no-progress"], catch_exceptions=False
    )
    return root


@pytest.fixture(scope="module")
def folder(generated, tmp_path_factory):
    """The generated images in one folder, as somebody who has no lists keeps them."""
    root = tmp_path_factory.mktemp("folder")
    shutil.copytree(generated / "JPEGImages", root / "images")
    shutil.copytree(generated / "SegmentationClass", root / "masks/images")
    shutil.copy(generated / "classes.txt", root)
    return root


@pytest.fixture(params=available("toco.data"))
def config(request, generated, coco, folder):
    """Each on its smallest data: the generator makes its own, readers read what it made."""
    module = load("toco.data", request.param)
    assert issubclass(module.Config, DataConfig)
    settings = {
        "coco": {"root": coco},
        "folder": {"root": folder, "labels": "masks", "masks": "masks", "val_share": 0.4},
        "shapes": {"root": generated.parent, **SMALL},
        "voc": {"root": generated, "train_list": "train"},
    }
    return module.Config(**settings[request.param])


def test_the_defaults_are_a_config(config):
    assert type(config)().name == config.name


@pytest.fixture
def splits(config):
    module = load("toco.data", config.name)
    return {split: module.open_split(config, split) for split in ("train", "val")}


def test_images_masks_and_labels_belong_together(splits):
    for dataset in splits.values():
        assert isinstance(dataset, Dataset)
        assert len(dataset) == len(dataset.names) == len(set(dataset.names)) > 0
        for index in range(len(dataset)):
            image, mask, labels = (
                dataset.image(index),
                dataset.mask(index),
                dataset.class_labels(index),
            )
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
