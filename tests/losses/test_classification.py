import math

import pytest
import torch

from toco.losses.classification import classification_loss


def test_by_hand():
    logits = torch.tensor([[0.0, 2.0], [-1.0, 3.0]], dtype=torch.float64)
    class_labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    # log(1 + exp(-x)) for a class in the image, log(1 + exp(x)) for one that is not.
    terms = [
        math.log(2),
        math.log1p(math.exp(2)),
        math.log1p(math.exp(-1)),
        math.log1p(math.exp(-3)),
    ]
    assert classification_loss(logits, class_labels).item() == pytest.approx(
        sum(terms) / 4, rel=1e-12
    )


@pytest.mark.parametrize("run", ["iter0_f32", "iter2001_f32", "iter2001_f64"])
@pytest.mark.parametrize(("logits", "loss"), [("cls", "cls_loss"), ("cls_aux", "cls_loss_aux")])
def test_recorded_iteration(golden, run, logits, loss):
    arrays = golden("train_iteration")
    predicted = torch.from_numpy(arrays[f"{run}__{logits}"])
    class_labels = torch.from_numpy(arrays["data__cls_label"]).to(predicted)
    expected = torch.from_numpy(arrays[f"{run}__{loss}"])
    torch.testing.assert_close(
        classification_loss(predicted, class_labels), expected, rtol=5e-7, atol=0
    )
