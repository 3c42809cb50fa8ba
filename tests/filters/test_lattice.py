import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from toco.filters import lattice
from toco.filters._shared import bilateral_features

RAW_CASES = ["smooth", "multiple_of_4_no", "impulse_const_image", "impulse_isolated", "small_sigma"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", RAW_CASES)
def test_equals_the_compiled_filter(golden, case):
    arrays = golden("energy")
    image, values, expected = (
        torch.tensor(arrays[f"raw_{case}__{name}"][0]) for name in ("image", "values", "lattice")
    )
    sigma_rgb, sigma_xy = (float(sigma) for sigma in arrays[f"raw_{case}__sigmas_rgb_xy"])
    result = lattice.build(image[None], sigma_rgb, sigma_xy)(values[None])[0]
    # Found: at most 7e-8 in the relative L2 norm, 3e-7 of a single value. A factor of the
    # construction that is off by one unit in the last place of float32 shows up as 3e-6.
    assert torch.linalg.norm(result - expected) <= 3e-7 * torch.linalg.norm(expected)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)


def test_one_pixel_by_hand():
    # At the origin the pixel is a vertex itself, and the other five corners exist with weight 0.
    # Six halves travel once around the simplex, a step in each direction, and come back.
    result = lattice.build(torch.zeros(1, 3, 1, 1), 15.0, 50.0)(torch.tensor([[[[2.0]]]]))
    assert result.item() == pytest.approx(2 * (1 + 2**-6) / (1 + 2**-5), rel=1e-6)


def test_one_pixel_by_hand_in_two_dimensions():
    result = lattice.build_gaussian(torch.zeros(1, 3, 1, 1), 1.0)(torch.tensor([[[[2.0]]]]))
    assert result.item() == pytest.approx(2 * (1 + 2**-3) / (1 + 2**-2), rel=1e-6)


def vertices_of(nearest: Tensor, rank: Tensor) -> Tensor:
    """All six coordinates of the six vertices around every point, by the rule that ``_simplices``
    states.
    """
    corner = torch.arange(6)[:, None, None]
    return nearest.long() + corner - 6 * (rank > 5 - corner)


def test_corners_enclose_their_pixel():
    """Barycentric weights are a partition of unity, and the weighted corners are the pixel."""
    features = bilateral_features(noise(3, 9, 11) * 255, 15.0, 5.0)
    nearest, rank, weights = lattice._simplices(features)
    torch.testing.assert_close(weights.sum(0), torch.ones(99))
    assert weights.min() >= -1e-6
    corners = vertices_of(nearest, rank)
    assert (corners.sum(1) == 0).all()
    assert (
        corners % 6 == torch.arange(6)[:, None, None]
    ).all()  # corner c is congruent to c in every coordinate
    axes = torch.arange(1, 6)
    basis = torch.zeros(6, 5)
    for axis in axes.tolist():
        basis[:axis, axis - 1] = 1
        basis[axis, axis - 1] = -axis
    scale = (2 / 3) ** 0.5 * 6 / (axes * (axes + 1)).sqrt()
    torch.testing.assert_close(
        (weights[:, None] * corners).sum(0), (basis * scale) @ features, rtol=1e-4, atol=1e-4
    )


def test_neighbours_are_one_step_along_a_direction():
    """Against a dictionary of the vertices, as the compiled filter looks them up."""
    image = noise(3, 8, 8, seed=3) * 60
    nearest, rank, _ = lattice._simplices(bilateral_features(image, 15.0, 5.0))
    keys = vertices_of(nearest, rank)[:, :5]
    vertices = sorted({tuple(key) for key in keys.transpose(1, 2).flatten(0, 1).tolist()})
    index = {key: i for i, key in enumerate(vertices)}
    (built,) = lattice.build(image[None], 15.0, 5.0).images
    expected_corners = [index[tuple(key)] for key in keys.transpose(1, 2).flatten(0, 1).tolist()]
    assert built.corners.T.flatten().tolist() == expected_corners
    assert built.neighbours.shape == (6, len(vertices), 3)
    num_found = 0
    for direction, (i, key) in itertools.product(range(6), enumerate(vertices)):
        step = [6 * (axis == direction) - 1 for axis in range(5)]
        before, after = (
            tuple(k + sign * s for k, s in zip(key, step, strict=True)) for sign in (-1, 1)
        )
        expected = [i, index.get(before, len(vertices)), index.get(after, len(vertices))]
        assert built.neighbours[direction, i].tolist() == expected
        num_found += expected[1] < len(vertices)
    assert num_found > len(vertices)  # the case is not empty


def test_all_maps_in_one_call_equal_one_map_at_a_time():
    values = noise(1, 5, 12, 10, seed=1)
    built = lattice.build(noise(1, 3, 12, 10) * 255, 15.0, 50.0)
    one_by_one = torch.cat([built(value[None, None]) for value in values[0]], dim=1)
    torch.testing.assert_close(built(values), one_by_one, rtol=1e-6, atol=0)
    assert torch.equal(built(values), built(values))


def test_memory_layout_of_the_inputs_does_not_matter():
    images, values = (
        noise(2, 14, 6, channels, seed=channels).permute(0, 3, 1, 2) for channels in (3, 2)
    )
    images = images * 255
    result = lattice.build(images, 15.0, 50.0)(values)
    expected = lattice.build(images.contiguous(), 15.0, 50.0)(values.contiguous())
    assert torch.equal(result, expected)


def test_colours_far_apart_do_not_mix():
    images = torch.zeros(1, 3, 8, 8)
    images[..., 4:] = 255
    left_only = torch.zeros(1, 1, 8, 8)
    left_only[..., :4] = 1
    result = lattice.build(images, 15.0, 50.0)(left_only)
    assert (result[..., :4] > 1).all()
    assert (result[..., 4:] == 0).all()


def test_padding_is_in_the_lattice_though_it_does_not_count():
    """As in the compiled filter: vertices that only the padding touches pass values on."""
    images, values = noise(1, 3, 12, 10, seed=4) * 40, noise(1, 2, 12, 10, seed=5)
    box = torch.tensor([[2, 9, 3, 10]])
    result = lattice.build(images, 15.0, 2.0, box)(values)
    masked = torch.zeros_like(values)
    masked[..., 2:9, 3:10] = values[..., 2:9, 3:10]
    whole = lattice.build(images, 15.0, 2.0)(masked)
    assert torch.equal(result[..., 2:9, 3:10], whole[..., 2:9, 3:10])
    cropped = lattice.build(images[..., 2:9, 3:10], 15.0, 2.0)(values[..., 2:9, 3:10])
    assert ((result[..., 2:9, 3:10] - cropped).abs() > 1e-3).any()


def test_float64_maps_come_back_as_float64_with_float32_values():
    values = noise(1, 2, 6, 6)
    built = lattice.build(noise(1, 3, 6, 6) * 255, 15.0, 50.0)
    result = built(values.double())
    assert result.dtype == torch.float64
    np.testing.assert_array_equal(result, built(values).double())


def test_refuses_a_lattice_too_fine_to_number():
    with pytest.raises(ValueError, match="use larger standard deviations"):
        lattice.build(noise(1, 3, 8, 8) * 255, 0.01, 0.001)
