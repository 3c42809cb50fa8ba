import json

import numpy as np
import pytest
import torch
from PIL import Image

from toco.cam.config import CrfConfig
from toco.evaluate.pictures import voc_palette
from toco.predict.config import InferenceConfig
from toco.predict.split_predictions import (
    open_predictions,
    predict_split,
    score_predictions,
    weights_digest,
)
from toco.types import Shard

CRF = InferenceConfig(scales=(1.0,), crf=CrfConfig(iterations=2, bilateral_sigma_rgb=30))
PLAIN = CRF.model_copy(update={"crf": None})
SIZES = [(6, 8), (7, 5), (6, 8), (4, 4), (9, 6)]


@pytest.fixture
def soft(method):
    """The method with logits that leave the CRF something to change."""
    sharp = method.segmentation_logits
    method.segmentation_logits = lambda images: sharp(images) / 200
    return method.eval()


def predict(path, method, dataset, config=CRF, shard=Shard(), without_crf=None):
    folder = open_predictions(path, dataset, config, {"weights": "w"})
    predict_split(method, dataset, config, "cpu", folder, without_crf=without_crf, shard=shard)
    return folder


def content(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_prediction_is_an_index_picture_in_the_colours_of_voc(tmp_path, soft, random_dataset):
    dataset = random_dataset(SIZES)
    folder = predict(tmp_path, soft, dataset, PLAIN)
    with Image.open(folder.output(1)) as picture:
        assert (picture.mode, picture.format) == ("P", "PNG")
        assert picture.getpalette() == voc_palette().flatten().tolist()
        # Blue is background, red the first class, green the second; its mirror image does not
        # change that.
        assert np.array_equal(np.asarray(picture), dataset.image(1)[..., [2, 0, 1]].argmax(-1))
    assert folder.about == {"weights": "w", "inference": PLAIN.model_dump(mode="json")}


def test_stopped_work_goes_on_and_shares_are_as_one(tmp_path, soft, random_dataset):
    dataset = random_dataset(SIZES)
    predict(tmp_path / "one", soft, dataset)
    expected = content(tmp_path / "one")
    assert len(expected) == 6

    read, image = [], dataset.image

    def interrupted(index):
        if len(read) == 3:
            raise KeyboardInterrupt
        read.append(index)
        return image(index)

    dataset.image = interrupted
    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path / "stopped", soft, dataset)
    assert len(content(tmp_path / "stopped")) == 4
    dataset.image = lambda index: read.append(index) or image(index)
    predict(tmp_path / "stopped", soft, dataset)
    assert read == [0, 1, 2, 3, 4]
    assert content(tmp_path / "stopped") == expected

    assert predict(tmp_path / "two", soft, dataset, shard=Shard(1, 2)).missing() == [0, 2, 4]
    assert not predict(tmp_path / "two", soft, dataset, shard=Shard(0, 2)).missing()
    assert content(tmp_path / "two") == expected


def test_predictions_before_the_crf_are_kept_in_the_same_pass(tmp_path, soft, random_dataset):
    dataset, passes = random_dataset(SIZES), []
    logits = soft.segmentation_logits
    soft.segmentation_logits = lambda images: passes.append(1) or logits(images)
    for name, config in (("crf", CRF), ("plain", PLAIN)):
        predict(tmp_path / name, soft, dataset, config)
    passes.clear()
    without = open_predictions(tmp_path / "without", dataset, PLAIN, {"weights": "w"})
    predict(tmp_path / "with", soft, dataset, without_crf=without)
    assert len(passes) == len(SIZES)
    assert content(tmp_path / "with") == content(tmp_path / "crf") != content(tmp_path / "plain")
    assert content(tmp_path / "without") == content(tmp_path / "plain")

    # Asked for later, they are made then.
    late = open_predictions(tmp_path / "late", dataset, PLAIN, {"weights": "w"})
    predict(tmp_path / "crf", soft, dataset, without_crf=late)
    assert content(tmp_path / "late") == content(tmp_path / "plain")


def test_other_settings_get_another_folder(tmp_path, soft, random_dataset):
    dataset = random_dataset(SIZES)
    predict(tmp_path, soft, dataset)
    with pytest.raises(ValueError, match=r"outputs of other settings: inference\."):
        predict(tmp_path, soft, dataset, PLAIN)


def test_scores_are_those_of_one_matrix_over_the_split(tmp_path, soft, random_dataset):
    dataset = random_dataset(SIZES)
    dataset.masks = [
        np.where(mask == 2, 255, mask) for mask in dataset.masks
    ]  # nobody is of the second class
    folder = predict(tmp_path, soft, dataset)
    scores = score_predictions(folder, dataset, CRF)
    pairs = [
        (mask, np.asarray(Image.open(folder.output(i)))) for i, mask in enumerate(dataset.masks)
    ]
    label, found = (
        np.concatenate([part.ravel() for part in parts]) for parts in zip(*pairs, strict=True)
    )
    found, label = found[label != 255], label[label != 255]
    iou = [
        ((found == c) & (label == c)).sum() / ((found == c) | (label == c)).sum() for c in (0, 1)
    ]
    assert scores.per_class["seg_iou"][:2] == pytest.approx(iou)
    assert scores.per_class["seg_iou"][2] is None
    assert scores.metrics == {
        "miou": pytest.approx(np.mean(iou)),
        "pixel_accuracy": pytest.approx((found == label).mean()),
    }
    assert scores.per_class["recall"][0] == pytest.approx((found[label == 0] == 0).mean())
    assert scores.per_class["precision"][1] == pytest.approx((label[found == 1] == 1).mean())

    written = json.loads(scores.to_json())
    assert written["metrics"] == scores.metrics
    assert written["about"]["weights"] == "w"
    assert written["num_images"] == 5
    assert "2 iterations" in written["protocol"]
    assert "over the 5 images" in written["protocol"]
    rows = [row.split() for row in scores.table().splitlines()]
    assert [row[0] for row in rows if row and not row[0].startswith("-")] == [
        "class",
        "background",
        "cat",
        "dog",
        "mean",
    ]
    assert rows[-1][1] == f"{100 * np.mean(iou):.1f}"


def test_without_ground_truth_there_is_no_score(tmp_path, soft, random_dataset):
    dataset = random_dataset(SIZES)
    folder = predict(tmp_path, soft, dataset)
    masks = dataset.masks
    dataset.masks = [np.full_like(mask, 255) for mask in masks]
    assert score_predictions(folder, dataset, CRF) is None
    dataset.masks = [None] * 5
    assert score_predictions(folder, dataset, CRF) is None
    for some in ([*masks[:4], None], [None, *masks[1:]]):
        dataset.masks = some
        with pytest.raises(ValueError, match="1 of 5 images have no mask, such as '"):
            score_predictions(folder, dataset, CRF)


def test_the_digest_of_weights_is_of_their_names_and_values(method):
    method.weight = torch.nn.Parameter(torch.arange(4.0).view(2, 2).T)
    before = weights_digest(method)
    assert before == weights_digest(method)
    assert len(before) == 16
    with torch.no_grad():
        method.weight[0, 1] += 1e-6
    assert weights_digest(method) != before
