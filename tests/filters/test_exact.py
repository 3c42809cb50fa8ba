import math

import numpy as np
import pytest
import torch
from torch import Tensor

from toco.filters import exact

RAW_CASES = ["smooth", "multiple_of_4_no", "impulse_const_image", "impulse_isolated", "small_sigma"]


def brute_force(image: Tensor, values: Tensor, sigma_rgb: float, sigma_xy: float) -> Tensor:
    """Every pair by its distance, in float64: no expansion of squares, no tiles."""
    height, width = image.shape[1:]
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack([row, column]).double().flatten(1).T
    colour = image.double().flatten(1).T
    distance = (
        torch.cdist(position, position) ** 2 / sigma_xy**2
        + torch.cdist(colour, colour) ** 2 / sigma_rgb**2
    )
    return (values.double().flatten(1) @ torch.exp(-distance / 2)).view(values.shape)


@pytest.mark.parametrize("case", RAW_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_recorded_sums(golden, case, dtype):
    arrays = golden("energy")
    image, values, expected = (
        arrays[f"raw_{case}__{name}"][0] for name in ("image", "values", "exact")
    )
    sigma_rgb, sigma_xy = (float(sigma) for sigma in arrays[f"raw_{case}__sigmas_rgb_xy"])
    built = exact.build(torch.tensor(image, dtype=dtype)[None], sigma_rgb, sigma_xy)
    result = built(torch.tensor(values, dtype=dtype)[None])[0]
    assert result.dtype == dtype
    # Found: 2e-7 in float32, 1e-12 in float64. Weights below exp(-60) are not resolved, hence the
    # absolute part.
    np.testing.assert_allclose(
        result, expected, rtol=1e-6 if dtype == torch.float32 else 1e-10, atol=1e-20
    )


def test_two_pixels_by_hand():
    image = torch.tensor([[[0.0, 30.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    weight = math.exp(-(1 / 2**2) / 2 - (30 / 15) ** 2 / 2)
    result = exact.build(image[None], 15.0, 2.0)(torch.tensor([[[[1.0, 10.0]]]]))
    assert result.flatten().tolist() == pytest.approx([1 + 10 * weight, 10 + weight], rel=1e-6)


def test_float32_is_within_1e_4_of_float64_where_features_are_far_apart():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 40, 50, generator=generator) * 255
    values = torch.rand(3, 40, 50, generator=generator)
    for sigma_rgb, sigma_xy in [(15.0, 50.0), (3.0, 4.0)]:
        result = exact.build(image[None], sigma_rgb, sigma_xy)(values[None])[0].double()
        expected = brute_force(image, values, sigma_rgb, sigma_xy)
        assert ((result - expected).abs() / expected).max() < 1e-5


@pytest.mark.parametrize("tile_rows", [3, 7, 60, 120, 1000])
def test_tiles_do_not_change_the_sum(tile_rows):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(3, 10, 12, generator=generator, dtype=torch.float64) * 255
    values = torch.rand(2, 10, 12, generator=generator, dtype=torch.float64)
    result = exact.build(image[None], 40.0, 5.0, tile_rows=tile_rows)(values[None])[0]
    torch.testing.assert_close(result, brute_force(image, values, 40.0, 5.0), rtol=1e-12, atol=0)


def test_the_precision_that_training_asks_for_does_not_reach_the_filter():
    generator = torch.Generator().manual_seed(2)
    images, values = (
        torch.rand(1, 3, 24, 24, generator=generator) * 255,
        torch.rand(1, 4, 24, 24, generator=generator),
    )
    expected = exact.build(images, 15.0, 50.0)(values)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = exact.build(images, 15.0, 50.0)(values)
        assert torch.get_float32_matmul_precision() == "medium", (
            "the filter must leave the setting as it was"
        )
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(result, expected)


def test_half_precision_maps_are_summed_in_float32():
    values = torch.ones(1, 1, 20, 20, dtype=torch.bfloat16)
    result = exact.build(torch.zeros(1, 3, 20, 20), 15.0, 1e6)(values)
    assert result.dtype == torch.bfloat16
    assert (result == 400).all()  # bfloat16 cannot count past 256 in ones
