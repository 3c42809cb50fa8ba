import math

import numpy as np
import pytest
import torch

from toco.metrics.segmentation import (
    ConfusionMatrix,
    class_scores,
    confusion_by_image,
    count_by_image,
    mean_over_classes,
)


def _accumulate(arrays, case):
    confusion = ConfusionMatrix(int(arrays[f"{case}__num_classes"]))
    for i in range(2):
        if f"{case}__gt{i}" in arrays:
            label, prediction = (
                torch.from_numpy(arrays[f"{case}__{side}{i}"]) for side in ("gt", "pred")
            )
            confusion.update(label, prediction)
    return confusion


@pytest.mark.parametrize(
    ("case", "recorded"),
    [
        *(
            (case, "scores")
            for case in ("basic", "absent_class_predicted", "class_absent_everywhere", "perfect")
        ),
        *(
            (case, "pseudo_scores")
            for case in ("basic", "absent_class_predicted", "pred_ignore", "perfect")
        ),
    ],
)
def test_scores_equal_the_official_ones(golden, case, recorded):
    arrays = golden("evaluate")
    confusion = _accumulate(arrays, case)
    scores = confusion.scores()
    # The official list has 0, not NaN, for a class that is absent but was predicted; its mIoU
    # leaves such a class out.
    present = confusion.matrix.sum(1) > 0
    assert scores.iou.isnan().equal(~present)
    np.testing.assert_allclose(
        scores.iou[present].numpy(), arrays[f"{case}__{recorded}__iou"][present], rtol=1e-12
    )
    summary = [
        scores.pixel_accuracy,
        mean_over_classes(scores.recall),
        mean_over_classes(scores.iou),
    ]
    np.testing.assert_allclose(
        torch.stack(summary).numpy(), arrays[f"{case}__{recorded}__pAcc_mAcc_miou"], rtol=1e-12
    )


def test_scores_by_hand():
    # Class 0: T 4, P 3, TP 2. Class 1: T 3, P 4, TP 2. Class 2: T 1, never predicted. Class 3:
    # absent, predicted once.
    matrix = torch.tensor([[2, 2, 0, 0], [0, 2, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    scores = class_scores(matrix)
    nan = math.nan
    torch.testing.assert_close(
        scores.iou, torch.tensor([2 / 5, 2 / 5, 0, nan]).double(), equal_nan=True
    )
    torch.testing.assert_close(
        scores.precision, torch.tensor([2 / 3, 1 / 2, 0, nan]).double(), equal_nan=True
    )
    torch.testing.assert_close(
        scores.recall, torch.tensor([1 / 2, 2 / 3, 0, nan]).double(), equal_nan=True
    )
    torch.testing.assert_close(
        scores.fp_rate, torch.tensor([1 / 5, 2 / 5, 0, nan]).double(), equal_nan=True
    )
    torch.testing.assert_close(
        scores.fn_rate, torch.tensor([2 / 5, 1 / 5, 1, nan]).double(), equal_nan=True
    )
    torch.testing.assert_close(
        scores.confusion_ratio, torch.tensor([1 / 2, 1, nan, nan]).double(), equal_nan=True
    )
    assert scores.pixel_accuracy.item() == 0.5
    assert mean_over_classes(scores.iou).item() == pytest.approx(0.8 / 3)


def test_iou_fp_rate_and_fn_rate_sum_to_one_and_a_stack_is_scored_as_its_members():
    matrices = torch.randint(0, 50, (3, 5, 5), generator=torch.Generator().manual_seed(0))
    scores = class_scores(matrices)
    torch.testing.assert_close(
        scores.iou + scores.fp_rate + scores.fn_rate, torch.ones(3, 5).double()
    )
    for i in range(3):
        assert torch.equal(scores.precision[i], class_scores(matrices[i]).precision)
        assert torch.equal(scores.pixel_accuracy[i], class_scores(matrices[i]).pixel_accuracy)


def test_the_matrix_is_the_sum_over_images_not_a_mean_of_image_scores():
    confusion = ConfusionMatrix(2)
    confusion.update(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 1]))
    confusion.update(torch.tensor([1, 1]), torch.tensor([0, 0]))
    assert confusion.matrix.tolist() == [[3, 0], [2, 1]]
    assert mean_over_classes(confusion.scores().iou).item() == pytest.approx((3 / 5 + 1 / 3) / 2)


def test_void_counts_on_neither_side_and_uint8_labels_do_not_wrap():
    confusion = ConfusionMatrix(21)
    confusion.update(
        torch.tensor([20, 255, 20], dtype=torch.uint8),
        torch.tensor([20, 20, 255], dtype=torch.uint8),
    )
    assert confusion.matrix.sum() == 1
    assert confusion.matrix[20, 20] == 1


@pytest.mark.parametrize(
    ("label", "prediction"), [([0, 3], [0, 0]), ([0, -1], [0, 0]), ([0, 0], [0, 3])]
)
def test_a_value_that_is_no_class_is_refused(label, prediction):
    with pytest.raises(ValueError, match="expected 0 to 2 or 255"):
        ConfusionMatrix(3).update(torch.tensor(label), torch.tensor(prediction))


def test_without_pixels_nothing_is_defined():
    scores = ConfusionMatrix(2).scores()
    assert scores.iou.isnan().all()
    assert mean_over_classes(scores.iou).isnan()
    assert scores.pixel_accuracy.isnan()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_images_are_counted_apart(dtype):
    rng = np.random.default_rng(0)
    label, prediction = (rng.choice(np.array([0, 1, 2, 20, 255]), (3, 11, 7)) for _ in range(2))
    label[1] = 255
    counted = confusion_by_image(
        torch.from_numpy(label).to(dtype), torch.from_numpy(prediction).to(dtype), 21
    )
    for image in range(3):
        valid = (label[image] != 255) & (prediction[image] != 255)
        cells = label[image][valid] * 21 + prediction[image][valid]
        assert counted[image].tolist() == np.bincount(cells, minlength=441).reshape(21, 21).tolist()


def test_values_need_not_be_classes():
    label = torch.tensor([[[0, 1, 255], [1, 1, 0]]])
    value = torch.tensor([[[4, 0, 2], [4, 4, 1]]])
    assert count_by_image(label, value, num_classes=2, num_values=5).tolist() == [
        [[0, 1, 0, 0, 1], [1, 0, 0, 0, 2]]
    ]
