import math

import pytest
import torch

from toco.losses.segmentation import segmentation_loss

CASES = ["mixed", "mixed_f64", "nobg_nan", "nofg_nan", "allignore_nan", "one_bg_pixel"]


@pytest.mark.parametrize("case", CASES)
def test_every_recorded_value_and_gradient(golden_cases, case):
    cases = golden_cases("seg_loss")
    assert set(cases) == set(CASES)
    a = cases[case]
    logits = a["pred"].requires_grad_()
    loss = segmentation_loss(logits, a["label"])
    loss.backward()
    is_double = logits.dtype == torch.float64
    if case.endswith(
        "_nan"
    ):  # An empty half: the official value is NaN, the gradient is the one that we want.
        assert a["loss"].isnan()
        assert loss.isfinite()
    else:
        torch.testing.assert_close(loss, a["loss"], rtol=1e-12 if is_double else 5e-7, atol=0)
    assert a["grad"].isfinite().all()
    assert (logits.grad - a["grad"]).norm() <= (1e-12 if is_double else 2e-6) * a["grad"].norm()


def test_by_hand():
    """Three background pixels and one of class 1: the lone pixel weighs as much as the three."""
    logits = torch.tensor(
        [[0.0, 0.0, 0.0, 0.0, 9.0], [0.0, 1.0, 2.0, 3.0, 9.0]], dtype=torch.float64
    ).view(1, 2, 1, 5)
    label = torch.tensor([[[0, 0, 0, 1, 255]]], dtype=torch.uint8)
    background = (math.log(2) + math.log1p(math.e) + math.log1p(math.e**2)) / 3
    foreground = math.log1p(math.exp(-3))
    assert segmentation_loss(logits, label).item() == pytest.approx(
        (background + foreground) / 2, rel=1e-12
    )


def test_an_empty_half_contributes_nothing():
    logits = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    only_background = torch.tensor([[[0, 0], [255, 255]]])
    expected = -0.5 * logits.log_softmax(1)[0, 0, 0].mean()
    torch.testing.assert_close(segmentation_loss(logits, only_background), expected)
    assert segmentation_loss(logits, torch.full((1, 2, 2), 255)).item() == 0


def test_mirrored_image_and_label_have_the_same_loss():
    logits, label = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randint(0, 4, (2, 5, 6))
    torch.testing.assert_close(
        segmentation_loss(logits.flip(-1), label.flip(-1)), segmentation_loss(logits, label)
    )


def test_does_not_wait_for_the_device():
    """Tensors without data: whatever reads a value on the host, or shapes
    a tensor by one, raises.
    """
    logits = torch.zeros(2, 4, 5, 6, device="meta", requires_grad=True)
    segmentation_loss(logits, torch.zeros(2, 5, 6, dtype=torch.int64, device="meta")).backward()
    assert logits.grad is not None
