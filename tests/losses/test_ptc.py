import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toco.losses.ptc import patch_token_contrast_loss

CASES = [
    "mixed",
    "mixed_f64",
    "nopos",
    "noneg",
    "allignore",
    "zero_vector",
    "zero_vector_f64",
    "positive_feats",
    "large_scale",
    "one_image_ignored",
    "nonsq_wide",
]


@pytest.mark.parametrize("case", CASES)
def test_every_recorded_value_and_gradient(golden_cases, case):
    cases = golden_cases("ptc_loss")
    assert set(cases) == set(CASES)
    a = cases[case]
    features = a["fmap"].requires_grad_()
    loss = patch_token_contrast_loss(features, a["mask"])
    loss.backward()
    is_double = features.dtype == torch.float64
    torch.testing.assert_close(loss, a["loss"], rtol=1e-12 if is_double else 5e-7, atol=0)
    error = (features.grad - a["grad"]).norm()
    assert error <= (1e-12 if is_double else 2e-6) * a["grad"].norm()


def tokens(*columns):
    return torch.tensor(columns, dtype=torch.float64).T[None, :, None, :]


def test_by_hand():
    """Three patches: cosines 0.6 (same class), -0.8 and 0 (other classes);
    every pair counts twice.
    """
    features = tokens([2.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, -3.0, 0.0])
    affinity = torch.tensor([[[255, 1, 0], [1, 255, 0], [0, 0, 255]]], dtype=torch.uint8)
    expected = 0.5 * (1 - 2 * 0.6 / 3) + 0.5 * (2 * 0.8 + 2 * 0.0) / 5
    assert patch_token_contrast_loss(features, affinity).item() == pytest.approx(
        expected, rel=1e-12
    )


def test_opposite_tokens_count_as_alike():
    affinity = torch.tensor([[[255, 1], [1, 255]]])
    alike = patch_token_contrast_loss(tokens([1.0, 2.0], [1.0, 2.0]), affinity)
    opposite = patch_token_contrast_loss(tokens([1.0, 2.0], [-1.0, -2.0]), affinity)
    torch.testing.assert_close(alike, opposite)


def test_counts_run_over_the_whole_batch():
    """An image with many pairs weighs more than one with few: not a mean of per-image losses."""
    features = torch.randn(2, 4, 1, 3, dtype=torch.float64)
    affinity = torch.tensor(
        [[[255, 1, 0], [1, 255, 0], [0, 0, 255]], [[255, 255, 0], [255, 255, 255], [0, 255, 255]]],
        dtype=torch.uint8,
    )
    unit = (features / features.norm(dim=1, keepdim=True)).flatten(2)
    cosine = (unit.mT @ unit).abs()
    expected = (
        0.5 * (1 - 2 * cosine[0, 0, 1] / 3)
        + (cosine[0, 0, 2] + cosine[0, 1, 2] + cosine[1, 0, 2]) / 7
    )
    torch.testing.assert_close(patch_token_contrast_loss(features, affinity), expected)


@given(st.integers(0, 2**31))
def test_order_of_patches_and_length_of_tokens_do_not_matter(seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 4, 2, 3, generator=generator, dtype=torch.float64)
    affinity = torch.tensor([0, 1, 255])[torch.randint(0, 3, (2, 6, 6), generator=generator)]
    loss = patch_token_contrast_loss(features, affinity)
    assert 0 <= loss <= 1
    order = torch.randperm(6, generator=generator)
    lengths = torch.rand(2, 1, 6, generator=generator, dtype=torch.float64) + 0.1
    shuffled = (features.flatten(2) * lengths)[:, :, order].unflatten(2, (2, 3))
    torch.testing.assert_close(
        patch_token_contrast_loss(shuffled, affinity[:, order][:, :, order]), loss
    )


def test_does_not_wait_for_the_device():
    """Tensors without data: whatever reads a value on the host, or shapes
    a tensor by one, raises.
    """
    features = torch.zeros(2, 4, 2, 3, device="meta", requires_grad=True)
    patch_token_contrast_loss(
        features, torch.zeros(2, 6, 6, dtype=torch.uint8, device="meta")
    ).backward()
    assert features.grad is not None
