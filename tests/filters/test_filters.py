import pytest
import torch

from toco import filters
from toco.registry import available


def blobs(side: int) -> torch.Tensor:
    """A generated image with large areas of similar colour and some texture, 0 to 255."""
    generator = torch.Generator().manual_seed(0)
    coarse, fine = (
        torch.rand(1, 3, 5, 5, generator=generator),
        torch.rand(1, 3, side, side, generator=generator),
    )
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    return 235 * smooth + 20 * fine


@pytest.mark.parametrize(
    ("name", "device", "num_pixels", "expected"),
    [
        ("auto", "cpu", 32 * 32, "exact"),
        ("auto", "cpu", filters.EXACT_MAX_PIXELS, "exact"),
        ("auto", "cpu", filters.EXACT_MAX_PIXELS + 1, "lattice"),
        ("auto", "cuda:0", 224 * 224, "exact"),
        ("lattice", "cuda", 1, "lattice"),
        ("exact", "cpu", 10**9, "exact"),
    ],
)
def test_resolve(name, device, num_pixels, expected):
    assert filters.resolve(name, torch.device(device), num_pixels) == expected
    assert expected in available("toco.filters")


EVERY_FILTER = pytest.mark.parametrize("name", available("toco.filters"))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@EVERY_FILTER
def test_every_filter_is_linear_and_counts_the_pixel_itself(name):
    images, values = noise(1, 3, 9, 7) * 255, noise(1, 2, 9, 7, seed=1)
    apply = filters.build(name, images, 15.0, 50.0)
    assert isinstance(apply, filters.BilateralFilter)
    first, second = apply(values)[0]
    torch.testing.assert_close(
        apply(2 * values[:, :1] - 3 * values[:, 1:])[0, 0], 2 * first - 3 * second
    )
    impulse = torch.zeros(1, 1, 9, 7)
    impulse[..., 4, 3] = 1
    assert apply(impulse)[0, 0, 4, 3] > 0.2
    assert not apply(values.requires_grad_()).requires_grad


@EVERY_FILTER
def test_every_filter_takes_position_and_colour_in_their_own_units(name):
    """Stretching distances and sigmas together changes nothing."""
    images, values = noise(1, 3, 8, 8) * 64, noise(1, 1, 8, 8, seed=1)
    expected = filters.build(name, images, 8.0, 4.0)(values)
    torch.testing.assert_close(filters.build(name, images * 2, 16.0, 4.0)(values), expected)
    far = filters.build(name, images * 0, 8.0, 4.0)(values)
    near = filters.build(name, images * 0, 8.0, 8.0)(values)
    assert (near > far).all()


@EVERY_FILTER
def test_images_of_a_batch_do_not_mix_and_a_filter_can_be_used_again(name):
    images, values, more = (
        noise(3, 3, 6, 9) * 255,
        noise(3, 2, 6, 9, seed=1),
        noise(3, 5, 6, 9, seed=2),
    )
    boxes = torch.tensor([[0, 6, 0, 9], [1, 5, 2, 9], [3, 3, 0, 9]])
    apply = filters.build(name, images, 15.0, 3.0, boxes)
    for maps in (values, more, values):
        alone = [
            filters.build(name, images[i : i + 1], 15.0, 3.0, boxes[i : i + 1])(maps[i : i + 1])[0]
            for i in range(3)
        ]
        assert torch.equal(apply(maps), torch.stack(alone))


@EVERY_FILTER
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outside_of_the_box_nothing_counts(name, dtype):
    images, values = noise(3, 3, 8, 6) * 60, noise(3, 2, 8, 6, seed=1).to(dtype)
    boxes = torch.tensor([[2, 7, 1, 5], [-3, 99, 3, 99], [5, 4, 0, 6]], dtype=torch.int32)
    row, column = torch.meshgrid(torch.arange(8), torch.arange(6), indexing="ij")
    inside = torch.stack(
        [(row >= y0) & (row < y1) & (column >= x0) & (column < x1) for y0, y1, x0, x1 in boxes]
    )
    assert inside.sum((1, 2)).tolist() == [20, 24, 0]
    inside = inside[:, None].expand_as(values)
    expected = filters.build(name, images, 15.0, 4.0)(values * inside) * inside
    result = filters.build(name, images, 15.0, 4.0, boxes)(
        values.masked_fill(~inside, float("nan"))
    )
    assert result.dtype == dtype
    assert (result[~inside] == 0).all()
    assert (result[inside] > 0).all()
    torch.testing.assert_close(result, expected)


def test_lattice_is_the_gaussian_but_for_a_factor():
    """The factor on photographs of this size is 0.59 to 0.61, here 0.54; how full the lattice is
    decides.
    """
    images = blobs(112)
    maps = torch.nn.functional.interpolate(images / 25, scale_factor=0.125).softmax(1)
    maps = torch.nn.functional.interpolate(maps, size=(112, 112), mode="bilinear")
    by_exact = filters.build("exact", images, 15.0, 50.0)(maps)
    by_lattice = filters.build("lattice", images, 15.0, 50.0)(maps)
    assert 0.52 < (by_lattice * maps).sum() / (by_exact * maps).sum() < 0.62
    assert torch.cosine_similarity(by_lattice.flatten(), by_exact.flatten(), dim=0) > 0.995


@EVERY_FILTER
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_filter_gives_the_same_on_cuda(name):
    images, values = blobs(64).expand(2, -1, -1, -1), noise(2, 5, 64, 64, seed=1)
    boxes = torch.tensor([[0, 64, 0, 64], [3, 50, 10, 43]])
    expected = filters.build(name, images, 15.0, 50.0, boxes)(values)
    result = filters.build(name, images.cuda(), 15.0, 50.0, boxes.cuda())(values.cuda())
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-4, atol=1e-4)


@EVERY_FILTER
def test_refuses_maps_of_another_size(name):
    apply = filters.build(name, torch.zeros(2, 3, 4, 5), 15.0, 50.0)
    for shape in ((2, 1, 5, 4), (1, 1, 4, 5)):
        with pytest.raises(ValueError, match="expected maps of 4 x 5 pixels for 2 images"):
            apply(torch.zeros(shape))


def test_wrong_settings_are_refused():
    images = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="Did you mean 'lattice'"):
        filters.build("latice", images, 15.0, 50.0)
    with pytest.raises(ValueError, match="expected positive standard deviations"):
        filters.build("exact", images, 0.0, 50.0)
    with pytest.raises(ValueError, match="positive"):
        filters.build("lattice", images, 15.0, float("nan"))


def test_the_gaussian_of_position_is_the_bilateral_sum_where_all_has_one_colour():
    images, values = torch.full((2, 3, 9, 7), 80.0), noise(2, 3, 9, 7)
    expected = filters.build("exact", images, 5.0, 2.5)(values)
    torch.testing.assert_close(
        filters.build_gaussian("exact", images, 2.5)(values), expected, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_on_the_lattice_the_mean_by_position_is_near_the_exact_one(sigma):
    images, values = noise(1, 3, 24, 30), noise(1, 2, 24, 30, seed=1)
    exact, lattice = (filters.build_gaussian(name, images, sigma) for name in ("exact", "lattice"))

    def mean(apply):
        return apply(values) / apply(torch.ones_like(values))

    deviation = (mean(lattice) - mean(exact)).std() / mean(exact).std()
    assert deviation < 0.15  # found: 0.095 and 0.096


def test_a_gaussian_has_a_positive_standard_deviation():
    with pytest.raises(ValueError, match=r"positive standard deviation, got sigma_xy=0\.0"):
        filters.build_gaussian("exact", noise(1, 3, 4, 4), 0.0)
