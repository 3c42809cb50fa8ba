import numpy as np
import torch

from toco.data.views.normalise import denormalise_255, normalise


def test_normalise_is_torchvisions(golden) -> None:
    g = golden("normalise")
    ours = normalise(torch.from_numpy(g["original_uint8"]))
    np.testing.assert_array_equal(ours.numpy(), g["normalised_as_torchvision"])


def test_normalise_is_the_validations(golden) -> None:
    g = golden("normalise")
    ours = normalise(torch.from_numpy(g["original_uint8"]))[0].permute(1, 2, 0)
    np.testing.assert_allclose(ours.numpy(), g["val_normalised_hwc"], atol=2e-6, rtol=0)


def test_truncated_pixels_are_the_official_ones(golden) -> None:
    g = golden("normalise")
    ours = denormalise_255(torch.from_numpy(g["normalised_as_torchvision"]), truncate=True)
    np.testing.assert_array_equal(ours.numpy(), g["denormalised_uint8"].astype(np.float32))
    np.testing.assert_allclose(ours.numpy() / 255, g["denormalised_01"], atol=1e-7, rtol=0)


def test_levels_lost_by_truncation() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    back = denormalise_255(normalise(levels), truncate=True)
    lost = levels.float() - back
    assert lost.sum(dim=(0, 2, 3)).tolist() == [19, 7, 6]
    assert set(lost.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(
        denormalise_255(normalise(levels), truncate=False), levels.float(), atol=1e-4, rtol=0
    )


def test_the_input_is_left_alone() -> None:
    pixels = torch.full((3, 2, 2), 10, dtype=torch.uint8)
    normalised = normalise(pixels)
    copy = normalised.clone()
    denormalise_255(normalised, truncate=True)
    assert (pixels == 10).all()
    assert torch.equal(normalised, copy)
