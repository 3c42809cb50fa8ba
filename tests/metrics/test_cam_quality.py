import numpy as np
import pytest
import torch

from toco.cam.labels import cam_to_label
from toco.metrics.cam_quality import CamQuality
from toco.metrics.segmentation import (
    ConfusionMatrix,
    class_scores,
    confusion_by_image,
    mean_over_classes,
)
from toco.tensors import present_classes

HUNDREDTHS = tuple(i / 100 for i in range(96))


def _images(seed, num_images=3, num_classes=4, size=(13, 17)):
    """Random CAMs, half of whose scores lie on a threshold in float32, with voids and an image
    without a class.
    """
    generator = torch.Generator().manual_seed(seed)
    cam = torch.rand(num_images, num_classes, *size, generator=generator)
    on_threshold = torch.tensor(HUNDREDTHS)[torch.randint(0, 96, cam.shape, generator=generator)]
    cam = torch.where(torch.rand(cam.shape, generator=generator) < 0.5, on_threshold, cam)
    label = torch.randint(0, num_classes + 1, (num_images, *size), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.1] = 255
    class_labels = (torch.rand(num_images, num_classes, generator=generator) < 0.5).float()
    class_labels[0] = 0
    return label, cam, class_labels


def _brute_force(batches, num_classes, threshold):
    confusion = ConfusionMatrix(num_classes + 1)
    for label, cam, class_labels in batches:
        confusion.update(label, cam_to_label(cam, class_labels, threshold))
    return confusion.matrix


@pytest.mark.parametrize("thresholds", [HUNDREDTHS, (0.5,), (0.0, 0.3, 0.7)])
def test_the_curve_equals_one_evaluation_for_each_threshold_exactly(thresholds):
    batches = [_images(seed=1), _images(seed=2, num_images=2, size=(9, 4))]
    quality = CamQuality(4, thresholds)
    for batch in batches:
        quality.add(quality.count(*batch))
    expected = torch.stack([_brute_force(batches, 4, threshold) for threshold in thresholds])
    assert torch.equal(quality.confusion_matrices(), expected)


def test_a_score_on_the_threshold_is_background_in_float32():
    # float32(0.1) and float32(0.7) lie on different sides of their float64 values; both have to be
    # background.
    for threshold in (0.1, 0.5, 0.7):
        at = np.float32(threshold)
        values = [np.nextafter(at, np.float32(0)), at, np.nextafter(at, np.float32(1))]
        quality = CamQuality(1, [threshold])
        cam = torch.tensor(np.array(values))[None, None, None]
        quality.add(quality.count(torch.ones(1, 1, 3, dtype=torch.int64), cam, torch.ones(1, 1)))
        assert quality.confusion_matrices().tolist() == [[[0, 0], [2, 1]]]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_maps_of_the_present_classes_count_as_those_of_all(seed, zeros):
    label, cam, class_labels = _images(seed)
    # Many equal scores, zeros among them, and an image of all classes beside one of none.
    cam = (cam * 4).round() / 4
    class_labels[1] = 1
    if zeros:
        cam[2] = 0
    present = present_classes(class_labels)
    full, compact = CamQuality(4, HUNDREDTHS), CamQuality(4, HUNDREDTHS)
    full.add(full.count(label, cam, class_labels))
    compact.add(
        compact.count(
            label, cam.take_along_dim(present[:, :, None, None], 1), class_labels, present
        )
    )
    assert torch.equal(full.histogram, compact.histogram)
    # The histogram by its definition.
    score, best = (cam * class_labels[:, :, None, None]).max(dim=1)
    bins = (score[..., None] > torch.tensor(HUNDREDTHS)).sum(-1)
    expected = torch.zeros_like(full.histogram)
    counted = label != 255
    one = torch.ones((), dtype=torch.int64)
    expected.index_put_((label[counted], best[counted], bins[counted]), one, accumulate=True)
    assert torch.equal(full.histogram, expected)


def test_one_class_of_many_and_padding_that_is_absent():
    class_labels = torch.tensor([[0.0, 0, 1, 0, 0], [0, 1, 0, 0, 1]])
    present = present_classes(class_labels)
    assert present.tolist() == [[0, 2], [1, 4]]
    cam = torch.tensor([[0.9, 0.4], [0.6, 0.6]])[..., None, None]
    quality = CamQuality(5, [0.25, 0.5])
    # The absent class 0 has the highest map of the first image; in the second the first of two
    # equal maps wins.
    counts = quality.count(torch.tensor([[[3]], [[0]]]), cam, class_labels, present)
    assert counts.confusions(0).nonzero().tolist() == [[0, 3, 3], [1, 0, 2]]
    assert counts.confusions(1).nonzero().tolist() == [[0, 3, 0], [1, 0, 2]]
    assert quality.histogram.sum() == 0
    quality.add(counts)
    assert quality.histogram.nonzero().tolist() == [[0, 1, 2], [3, 2, 1]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("index", [0, 30, 95])
def test_images_by_themselves_are_counted_as_their_labels(seed, index):
    label, cam, class_labels = _images(seed)
    present = present_classes(class_labels)
    counts = CamQuality(4, HUNDREDTHS).count(
        label, cam.take_along_dim(present[:, :, None, None], 1), class_labels, present
    )
    expected = confusion_by_image(label, cam_to_label(cam, class_labels, HUNDREDTHS[index]), 5)
    assert torch.equal(counts.confusions(index), expected)


def test_counting_asks_no_device_for_a_value():
    # Tensors on this device have shapes and no values: whatever needs one of them fails.
    quality = CamQuality(20, HUNDREDTHS, device="cpu")
    quality.thresholds, quality.histogram = (
        quality.thresholds.to("meta"),
        quality.histogram.to("meta"),
    )
    label, cam, class_labels, present = (
        torch.empty(2, 5, 7, dtype=torch.uint8, device="meta"),
        torch.empty(2, 3, 5, 7, device="meta"),
        torch.empty(2, 20, device="meta"),
        torch.empty(2, 3, dtype=torch.int64, device="meta"),
    )
    counts = quality.count(label, cam, class_labels, present)
    quality.add(counts)
    assert counts.confusions(50).shape == (2, 21, 21)


@pytest.mark.parametrize("case", ["nobox", "nofg_nobox", "exact_thr_voc_nobox"])
def test_labels_are_the_official_ones(golden, case):
    arrays = {
        name.split("__")[1]: value
        for name, value in golden("cam_to_label").items()
        if name.startswith(f"{case}__")
    }
    official = torch.from_numpy(arrays["label"])
    quality = CamQuality(arrays["cam"].shape[1], [float(arrays["thr_bkg_high_low_ignore"][0])])
    quality.add(
        quality.count(
            official, torch.from_numpy(arrays["cam"]), torch.from_numpy(arrays["cls_label"])
        )
    )
    num_classes = arrays["cam"].shape[1] + 1
    # With the official label in the place of the ground truth nothing may lie off the diagonal.
    expected = torch.diag(torch.bincount(official.flatten(), minlength=num_classes))
    assert torch.equal(quality.confusion_matrices()[0], expected)


def test_absent_classes_take_no_part():
    cam = torch.tensor([0.9, 0.6]).reshape(1, 2, 1, 1)
    quality = CamQuality(2, [0.5])
    quality.add(quality.count(torch.tensor([[[2]]]), cam, torch.tensor([[0.0, 1.0]])))
    assert quality.confusion_matrices()[0].nonzero().tolist() == [[2, 2]]


def test_best_threshold_by_hand():
    # Object scores 0.6 and 0.4, background scores 0.3 and 0.1: a threshold of 0.3 separates them.
    quality = CamQuality(1, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    quality.add(
        quality.count(
            torch.tensor([[[1, 1, 0, 0]]]),
            torch.tensor([[[[0.6, 0.4, 0.3, 0.1]]]]),
            torch.ones(1, 1),
        )
    )
    miou = mean_over_classes(class_scores(quality.confusion_matrices()).iou)
    torch.testing.assert_close(
        miou, torch.tensor([1 / 4, 7 / 12, 7 / 12, 1, 7 / 12, 7 / 12]).double()
    )


@pytest.mark.parametrize("thresholds", [(), (0.5, 0.5), (0.5, 0.4), (0.5, 0.5 + 1e-9)])
def test_thresholds_have_to_ascend(thresholds):
    with pytest.raises(ValueError, match="ascend strictly"):
        CamQuality(1, thresholds)
