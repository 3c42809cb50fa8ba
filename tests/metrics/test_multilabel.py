import math

import numpy as np
import pytest
import torch

from toco.metrics.multilabel import f1_per_image, mean_average_precision


def test_f1_equals_the_official_one(golden):
    arrays = golden("evaluate")
    predicted = torch.from_numpy(arrays["multilabel__pred"]).bool()
    f1 = f1_per_image(torch.from_numpy(arrays["multilabel__true"]), predicted)
    np.testing.assert_allclose(f1.numpy(), arrays["multilabel__f1_per_row"], rtol=1e-12)


def test_f1_by_hand():
    class_labels = torch.tensor([[1.0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 1]])
    predicted = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]).bool()
    assert f1_per_image(class_labels, predicted).tolist() == [0.5, 1.0, 0.0, 0.0, 0.0]


def test_average_precision_by_hand():
    # Class 0 ranks 1 0 1 0: precision 1 at recall 1/2, 2/3 at recall 1. Class 1 ranks its only
    # image last of four.
    class_labels = torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]])
    scores = torch.tensor([[4.0, 3, 0], [3, 2, 9], [2, 1, 8], [1, 0, 7]])
    assert mean_average_precision(class_labels, scores) == pytest.approx((5 / 6 + 1 / 4) / 2)


def test_a_class_without_images_does_not_count_and_no_class_at_all_is_undefined():
    assert (
        mean_average_precision(torch.tensor([[1.0, 0], [0, 0]]), torch.tensor([[1.0, 5], [0, 6]]))
        == 1.0
    )
    assert math.isnan(mean_average_precision(torch.zeros(2, 3), torch.rand(2, 3)))


def test_one_class_that_every_image_has():
    assert mean_average_precision(torch.ones(3, 1), torch.tensor([[1.0], [0.0], [2.0]])) == 1.0


def test_logits_that_cannot_be_ranked_are_refused():
    with pytest.raises(ValueError, match="1 of 2 images are not finite"):
        mean_average_precision(torch.ones(2, 2), torch.tensor([[0.0, math.nan], [1.0, 2.0]]))
