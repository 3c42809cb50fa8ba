import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from toco.cam.labels import cam_to_label
from toco.config import digest, replace
from toco.data.views.normalise import denormalise_255, normalise
from toco.evaluate.config import EvaluateConfig
from toco.evaluate.evaluator import evaluate, evenly_spaced
from toco.metrics.segmentation import ConfusionMatrix, mean_over_classes

NATIVE = EvaluateConfig(size_px=None, num_pictures=0)


@pytest.fixture
def by_hand(dataset_of):
    """Two images of 2 x 2 pixels: (red, green, blue) of every pixel, and the masks."""
    cat = np.array([[[200, 0, 0], [150, 0, 160]], [[100, 250, 120], [0, 0, 90]]], dtype=np.uint8)
    dog = np.array([[[0, 80, 0], [0, 180, 0]], [[0, 190, 200], [230, 70, 240]]], dtype=np.uint8)
    return dataset_of(
        [cat, dog], [np.array([[1, 1], [1, 0]], np.uint8), np.array([[2, 2], [255, 0]], np.uint8)]
    )


def test_every_metric_by_hand(method, by_hand):
    evaluation = evaluate(method, by_hand, NATIVE, "cpu")
    # Ground truth: cat 1 1 / 1 0 and dog 2 2 / void 0, so T is 2, 3, 2. CAM of the image's class
    # above 0.5 (127.5): cat 1 1 / 0 0 and dog 0 2 / void 0; P is 4, 2, 1, TP is 2, 2, 1. Inverted:
    # cat 0 0 / 1 1 and dog 2 0 / void 2; P is 3, 2, 2, TP is 0, 1, 1. Decoder (blue, red, green):
    # cat 1 0 / 2 0 and dog 2 2 / void 0; P is 3, 1, 3, TP is 2, 1, 2. The object's scores are at
    # least 80 / 255 = 0.314 and the background's at most 70 / 255 = 0.275.
    expected = {
        "val/seg_miou": (2 / 3 + 1 / 3 + 2 / 3) / 3,
        "val/seg_pixel_accuracy": 5 / 7,
        "val/cam_miou": (1 / 2 + 2 / 3 + 1 / 2) / 3,
        "val/cam_precision": (1 / 2 + 1 + 1) / 3,
        "val/cam_recall": (1 + 2 / 3 + 1 / 2) / 3,
        "val/cam_fp_rate": (1 / 2 + 0 + 0) / 3,
        "val/cam_fn_rate": (0 + 1 / 3 + 1 / 2) / 3,
        "val/cam_confusion_ratio": (1 + 0 + 0) / 3,
        "val/cam_best_miou": 1.0,
        "val/cam_best_threshold": 0.28,
        "val/aux_cam_miou": (0 + 1 / 4 + 1 / 3) / 3,
        "val/aux_cam_precision": (0 + 1 / 2 + 1 / 2) / 3,
        "val/aux_cam_recall": (0 + 1 / 3 + 1 / 2) / 3,
        "val/aux_cam_fp_rate": (3 / 5 + 1 / 4 + 1 / 3) / 3,
        "val/aux_cam_fn_rate": (2 / 5 + 2 / 4 + 1 / 3) / 3,
        "val/aux_cam_confusion_ratio": (1 + 1) / 2,
        # Both logits of both images are above 0, one of them rightly: F1 2/3. The cat image has the
        # lower red.
        "val/label_f1": 2 / 3,
        "val/label_map": (1 / 2 + 1 / 2) / 2,
        "val/patch_similarity_last": 1.0,
    }
    for name, value in expected.items():
        assert evaluation.metrics[name] == pytest.approx(value, abs=1e-6), name
    assert evaluation.metrics.keys() - expected.keys() == {
        "val/aux_cam_best_miou",
        "val/aux_cam_best_threshold",
    }
    assert evaluation.class_names == ("background", "cat", "dog")
    assert evaluation.per_class["seg_iou"] == pytest.approx((2 / 3, 1 / 3, 2 / 3))
    assert evaluation.per_class["cam_iou"] == pytest.approx((1 / 2, 2 / 3, 1 / 2))
    assert evaluation.per_class["cam_recall"] == pytest.approx((1, 2 / 3, 1 / 2))
    assert evaluation.patch_similarity == pytest.approx((0, 1), abs=1e-6)
    assert method.calls == [((2, 3, 2, 2), (1.0, 0.5, 1.5), True)]


def test_images_are_squashed_and_maps_resized_to_the_masks_as_in_the_official_validation(
    method, random_dataset
):
    dataset = random_dataset([(20, 31), (33, 18), (20, 31), (16, 16)])
    config = EvaluateConfig(size_px=24, num_pictures=0, batch_size=3)
    cam_confusion, segmentation = ConfusionMatrix(3), ConfusionMatrix(3)
    for i, image in enumerate(dataset.images):
        pixels = normalise(torch.from_numpy(image).permute(2, 0, 1))[None]
        squashed = interpolate(pixels, size=(24, 24), mode="bilinear", align_corners=False)
        colours = denormalise_255(squashed, truncate=False)
        scores = interpolate(colours, size=image.shape[:2], mode="bilinear", align_corners=False)[0]
        label = cam_to_label(
            scores[None, :2] / 255, torch.from_numpy(dataset.class_labels(i))[None], 0.5
        )[0]
        cam_confusion.update(torch.from_numpy(dataset.masks[i]), label)
        segmentation.update(torch.from_numpy(dataset.masks[i]), scores[[2, 0, 1]].argmax(0))
    evaluation = evaluate(method, dataset, config, "cpu")
    assert [shape for shape, _, _ in method.calls] == [(3, 3, 24, 24), (1, 3, 24, 24)]
    assert evaluation.metrics["val/cam_miou"] == pytest.approx(
        mean_over_classes(cam_confusion.scores().iou).item()
    )
    assert evaluation.metrics["val/seg_miou"] == pytest.approx(
        mean_over_classes(segmentation.scores().iou).item()
    )


@pytest.mark.parametrize("size_px", [None, 24])
def test_the_batch_size_changes_nothing(method, random_dataset, size_px):
    dataset = random_dataset([(20, 31), (20, 31), (33, 18), (20, 31), (33, 18)])
    one, many = (
        evaluate(
            method, dataset, EvaluateConfig(size_px=size_px, num_pictures=0, batch_size=size), "cpu"
        )
        for size in (1, 4)
    )
    assert many.metrics == pytest.approx(one.metrics, abs=1e-6)
    assert many.threshold_curve.miou["cam"] == pytest.approx(one.threshold_curve.miou["cam"])


def test_native_size_passes_equal_sizes_together_and_no_others(method, random_dataset):
    dataset = random_dataset([(20, 31), (20, 31), (33, 18), (20, 31), (20, 31), (33, 18)])
    evaluation = evaluate(
        method, dataset, replace(NATIVE, {"batch_size": 3, "num_pictures": 6}), "cpu"
    )
    assert [shape for shape, _, _ in method.calls] == [
        (3, 3, 20, 31),
        (1, 3, 20, 31),
        (2, 3, 33, 18),
    ]
    assert (
        tuple(picture.name for picture in evaluation.pictures)
        == evaluation.confusions.names
        == dataset.names
    )
    for picture, image in zip(evaluation.pictures, dataset.images, strict=True):
        assert picture.image is image


def test_the_maps_of_the_present_classes_are_all_that_is_asked_for(method, dataset_of):
    masks = [np.full((2, 2), value, np.uint8) for value in (0, 2, 1)]
    evaluation = evaluate(
        method, dataset_of([np.zeros((2, 2, 3), np.uint8)] * 3, masks), NATIVE, "cpu"
    )
    (present,) = method.present
    assert present.tolist() == [[0], [1], [0]]
    # The auxiliary CAM is 1 everywhere, so it says the class of the image wherever it has one.
    assert evaluation.confusions.matrices["aux_cam"].sum(0).tolist() == [
        [4, 0, 0],
        [0, 4, 0],
        [0, 0, 4],
    ]
    assert evaluation.confusions.matrices["cam"].sum(0).tolist() == [
        [4, 0, 0],
        [4, 0, 0],
        [4, 0, 0],
    ]


def test_the_curve_holds_the_fixed_threshold_and_the_best(method, random_dataset):
    config = replace(NATIVE, {"background_threshold": 0.333, "curve_step": 0.05, "curve_stop": 0.6})
    evaluation = evaluate(method, random_dataset([(20, 20)] * 3), config, "cpu")
    curve = dict(
        zip(
            evaluation.threshold_curve.thresholds,
            evaluation.threshold_curve.miou["cam"],
            strict=True,
        )
    )
    assert list(curve) == sorted([*(round(0.05 * i, 2) for i in range(13)), 0.333])
    assert evaluation.metrics["val/cam_miou"] == curve[0.333]
    assert evaluation.metrics["val/cam_best_miou"] == max(curve.values())
    assert curve[evaluation.metrics["val/cam_best_threshold"]] == max(curve.values())


def test_pictures_and_the_images_of_a_short_evaluation_are_evenly_spaced(method, random_dataset):
    dataset = random_dataset([(8, 9)] * 10)
    evaluation = evaluate(
        method, dataset, replace(NATIVE, {"max_images": 4, "num_pictures": 2}), "cpu"
    )
    assert [picture.name for picture in evaluation.pictures] == ["image0", "image9"]
    assert method.calls[0][0] == (4, 3, 8, 9)
    assert "at most 4" in evaluation.protocol


def test_a_picture_shows_what_was_scored(method, by_hand):
    (picture, _) = evaluate(method, by_hand, replace(NATIVE, {"num_pictures": 2}), "cpu").pictures
    assert np.array_equal(picture.image, by_hand.images[0])
    np.testing.assert_allclose(picture.cams["cam"], by_hand.images[0][..., 0] / 255, atol=1e-6)
    np.testing.assert_allclose(
        picture.cams["aux_cam"], 1 - by_hand.images[0][..., 0] / 255, atol=1e-6
    )
    assert picture.prediction.tolist() == [[1, 0], [2, 0]]
    assert picture.pseudo_label.tolist() == [[1, 1], [2, 2]]
    assert picture.mask.tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_method_is_restored(method, by_hand, training):
    method.train(training)
    evaluate(method, by_hand, NATIVE, "cpu")
    assert method.training is training


def test_the_mode_is_restored_after_a_failure(method, by_hand):
    by_hand.masks[1] = np.full((2, 2), 7, np.uint8)
    with pytest.raises(ValueError, match="holds the value 7"):
        evaluate(method.train(), by_hand, NATIVE, "cpu")
    assert method.training


def test_a_wrong_mask_is_found_before_the_network_sees_its_image(method, dataset_of):
    masks = [np.zeros((2, 2), np.uint8)] * 2 + [np.full((2, 2), 9, np.uint8)]
    dataset = dataset_of([np.zeros((2, 2, 3), np.uint8)] * 3, masks)
    sentence = r"The ground truth holds the value 9; expected 0 to 2 or 255 \(void\)"
    with pytest.raises(ValueError, match=sentence):
        evaluate(method, dataset, replace(NATIVE, {"batch_size": 2}), "cpu")
    assert [shape for shape, _, _ in method.calls] == [(2, 3, 2, 2)]


def test_an_image_without_a_mask_is_named(method, by_hand):
    by_hand.masks[1] = None
    with pytest.raises(ValueError, match="'image1' has none"):
        evaluate(method, by_hand, NATIVE, "cpu")


def test_a_data_set_of_other_classes_is_refused(method, dataset_of):
    with pytest.raises(ValueError, match="3 foreground classes, the method 2"):
        evaluate(method, dataset_of([], [], class_names=("a", "b", "c")), NATIVE, "cpu")
    with pytest.raises(ValueError, match="split is empty"):
        evaluate(method, dataset_of([], []), NATIVE, "cpu")


def test_what_is_not_defined_is_absent_from_the_metrics(method, dataset_of):
    empty = dataset_of([np.zeros((4, 4, 3), np.uint8)], [np.zeros((4, 4), np.uint8)])
    evaluation = evaluate(method, empty, NATIVE, "cpu")
    assert "val/label_map" not in evaluation.metrics
    assert evaluation.metrics["val/cam_miou"] == 1.0
    assert evaluation.per_class["cam_iou"] == (1.0, None, None)


def test_the_default_is_the_official_protocol_and_says_so():
    assert (
        EvaluateConfig()
        .protocol()
        .startswith("The official validation protocol of ToCo: images squashed to 448")
    )
    for changes in (
        {"size_px": 224},
        {"cam_flip": False},
        {"cam_scales": [1.0]},
        {"max_images": 10},
    ):
        assert replace(EvaluateConfig(), changes).protocol().startswith("Not the official protocol")
    assert "ground-truth image-level labels" in EvaluateConfig().protocol()


def test_config_refuses_what_has_no_meaning_and_its_digest_leaves_out_what_changes_no_result():
    for changes in (
        {"cam_scales": [1.0, 0.0]},
        {"background_threshold": 1.0},
        {"curve_step": 0.0},
        {"size_px": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(changes)).split("_")[0]):
            replace(EvaluateConfig(), changes)
    assert digest(EvaluateConfig(batch_size=1, num_pictures=0)) == digest(EvaluateConfig())
    assert len(EvaluateConfig().thresholds()) == 96


def test_evenly_spaced():
    assert evenly_spaced(10, 4) == [0, 3, 6, 9]
    assert evenly_spaced(3, 8) == [0, 1, 2]
    assert evenly_spaced(5, 1) == [0]
    assert evenly_spaced(5, 0) == []
