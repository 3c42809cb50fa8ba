import dataclasses

import numpy as np
import pytest

from toco.config import replace
from toco.evaluate import EvaluateConfig, Evaluation, read_confusions
from toco.evaluate.evaluator import evaluate, rescore
from toco.tensors import Cams

from tests.evaluate.conftest import PixelMethod  # isort: skip

NATIVE = EvaluateConfig(size_px=None, num_pictures=0, curve_step=0.05)
SIZES = [(20, 31), (33, 18), (20, 31), (16, 16), (33, 18)]


def iou_mean(matrix):
    matrix = matrix.astype(float)
    true, predicted, right = matrix.sum(1), matrix.sum(0), np.diag(matrix)
    return (right / (true + predicted - right))[true > 0].mean()


def test_the_matrices_of_all_images_add_up_to_the_scores(method, random_dataset):
    dataset = random_dataset(SIZES)
    evaluation = evaluate(method, dataset, NATIVE, "cpu")
    counted = evaluation.confusions
    for name in ("seg", "cam", "aux_cam"):
        total = counted.matrices[name].sum(0)
        assert iou_mean(total) == pytest.approx(
            evaluation.metrics[f"val/{name}_miou"], abs=1e-12
        ), name
    assert counted.class_names == ("background", "cat", "dog")
    for index, mask in enumerate(dataset.masks):
        ground_truth = np.bincount(mask[mask != 255], minlength=3)
        for matrices in counted.matrices.values():
            assert matrices[index].sum(1).tolist() == ground_truth.tolist()


def test_an_image_by_hand(method, dataset_of):
    # Red is the CAM of the cat, green that of the dog, which is not in this image; 127.5 is the
    # threshold.
    image = np.array([[[200, 255, 0], [100, 0, 0]], [[130, 0, 250], [0, 0, 0]]], dtype=np.uint8)
    dataset = dataset_of([image], [np.array([[1, 1], [0, 255]], np.uint8)])
    counted = evaluate(method, dataset, NATIVE, "cpu").confusions
    assert counted.matrices["cam"].tolist() == [[[0, 1, 0], [1, 1, 0], [0, 0, 0]]]
    # The inverted CAM is 0.22 and 0.61 on the cat, and 0.49 beside it.
    assert counted.matrices["aux_cam"].tolist() == [[[1, 0, 0], [1, 1, 0], [0, 0, 0]]]
    # Blue, red, green: dog and cat on the cat, background beside it.
    assert counted.matrices["seg"].tolist() == [[[1, 0, 0], [0, 1, 1], [0, 0, 0]]]


def test_the_images_stand_in_the_order_of_the_split_however_they_were_batched(
    method, random_dataset
):
    dataset = random_dataset(SIZES)
    one, many = (
        evaluate(
            method, dataset, EvaluateConfig(size_px=24, num_pictures=0, batch_size=size), "cpu"
        ).confusions
        for size in (1, 5)
    )
    assert one.names == many.names == dataset.names
    assert np.array_equal(one.matrices["seg"], many.matrices["seg"])
    assert np.array_equal(one.matrices["cam"], many.matrices["cam"])


def test_a_file_holds_what_was_counted_and_no_objects(method, random_dataset, tmp_path):
    counted = evaluate(method, random_dataset(SIZES), NATIVE, "cpu").confusions
    path = tmp_path / "counts.npz"
    np.savez_compressed(path, **counted.arrays())
    again = read_confusions(path)
    assert again.arrays().keys() == counted.arrays().keys()
    for name, before in counted.arrays().items():
        after = again.arrays()[name]
        assert after.dtype == before.dtype, name
        assert np.array_equal(after, before), name
    assert (type(again.names), type(again.class_names)) == (tuple, tuple)
    assert again.matrices["cam"].dtype == np.int32


def test_a_file_that_does_not_list_its_maps_is_one_of_toco_and_holds_them_all(
    method, random_dataset, tmp_path
):
    arrays = evaluate(method, random_dataset(SIZES), NATIVE, "cpu").confusions.arrays()
    del arrays["maps"]
    path = tmp_path / "counts.npz"
    np.savez_compressed(path, **arrays)
    assert read_confusions(path).matrices.keys() == {"seg", "cam", "aux_cam"}
    del arrays["aux_cam"]
    np.savez_compressed(path, **arrays)
    with pytest.raises(ValueError, match="lacks aux_cam"):
        read_confusions(path)


class CamsAlone(PixelMethod):
    """Without a further CAM and without a decoder."""

    def predict(self, images, scales, flip, present=None):
        prediction = super().predict(images, scales, flip, present)
        return dataclasses.replace(
            prediction, cams=Cams(prediction.cams.cam), segmentation_logits=None
        )


@pytest.mark.parametrize(
    "config", [NATIVE, replace(NATIVE, {"num_pictures": 2})], ids=["counts", "pictures"]
)
def test_maps_that_a_method_does_not_make_are_in_no_result(
    method, random_dataset, tmp_path, config
):
    dataset = random_dataset(SIZES)
    whole, plain = (evaluate(of, dataset, config, "cpu") for of in (method, CamsAlone()))
    absent = ("val/aux_cam_", "val/seg_")
    assert plain.metrics == {
        name: v for name, v in whole.metrics.items() if not name.startswith(absent)
    }
    assert list(plain.per_class) == ["cam_iou", "cam_precision", "cam_recall"]
    assert plain.threshold_curve.miou.keys() == plain.confusions.matrices.keys() == {"cam"}
    assert plain.coverage() == whole.coverage()
    assert Evaluation.from_json(plain.to_json()) == plain
    path = tmp_path / "counts.npz"
    np.savez_compressed(path, **plain.confusions.arrays())
    other = replace(config, {"background_threshold": 0.3, "num_pictures": 0})
    assert rescore(plain, read_confusions(path), other) == evaluate(
        CamsAlone(), dataset, other, "cpu"
    )
    assert [(list(p.cams), p.prediction) for p in plain.pictures] == [
        (["cam"], None)
    ] * config.num_pictures


def test_another_file_is_refused(method, random_dataset, tmp_path):
    path = tmp_path / "counts.npz"
    np.savez(path, names=np.array(["a"]))
    with pytest.raises(ValueError, match="lacks format_version, class_names"):
        read_confusions(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="not a file of confusion matrices"):
        read_confusions(path)
    counted = evaluate(method, random_dataset(SIZES[:1]), NATIVE, "cpu").confusions
    np.savez(path, **(counted.arrays() | {"format_version": 7}))
    with pytest.raises(ValueError, match="format version 7"):
        read_confusions(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"background_threshold": 0.3},
        {"background_threshold": 0.95},
        {"background_threshold": 0.0},
        {"background_threshold": 0.4, "curve_step": 0.1, "curve_stop": 0.7},
    ],
)
@pytest.mark.parametrize("background_threshold", [0.5, 0.333])
def test_another_threshold_is_rescored_as_it_would_have_been_evaluated(
    method, random_dataset, changes, background_threshold
):
    dataset = random_dataset(SIZES)
    config = replace(NATIVE, {"background_threshold": background_threshold})
    first = evaluate(method, dataset, config, "cpu", step=4)
    other = replace(config, changes)
    afresh = evaluate(method, dataset, other, "cpu", step=4)
    rescored = rescore(first, first.confusions, other)
    assert rescored == afresh
    assert rescored.to_json() == afresh.to_json()
    assert rescored.metrics != first.metrics


def test_a_threshold_that_was_not_counted_at_is_refused(method, random_dataset):
    first = evaluate(method, random_dataset(SIZES[:2]), NATIVE, "cpu")
    between = replace(NATIVE, {"background_threshold": 0.51})
    assert first.confusions.have(replace(NATIVE, {"background_threshold": 0.45}).thresholds())
    assert not first.confusions.have(between.thresholds())
    with pytest.raises(ValueError, match="expected some of these"):
        rescore(first, first.confusions, between)
