import pytest
import torch

from toco import filters
from toco.registry import available


def blobs(side: int) -> torch.Tensor:
    """A generated image with large areas of similar colour and some texture, 0 to 255."""
    generator = torch.Generator().manual_seed(0)
    coarse, fine = torch.rand(1, 3, 5, 5, generator=generator), torch.rand(1, 3, side, side, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    return (235 * smooth + 20 * fine)[0]


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


def test_the_limit_of_auto_can_be_set():
    assert filters.resolve("auto", "cpu", 100, exact_max_pixels=99) == "lattice"


@pytest.mark.parametrize("name", available("toco.filters"))
def test_every_filter_is_linear_and_counts_the_pixel_itself(name):
    generator = torch.Generator().manual_seed(0)
    image, values = torch.rand(3, 9, 7, generator=generator) * 255, torch.rand(2, 9, 7, generator=generator)
    apply = filters.build(name, image, 15.0, 50.0)
    first, second = apply(values)
    torch.testing.assert_close(apply((2 * values[0] - 3 * values[1])[None])[0], 2 * first - 3 * second)
    impulse = torch.zeros(1, 9, 7)
    impulse[0, 4, 3] = 1
    assert apply(impulse)[0, 4, 3] > 0.2
    assert not apply(values.requires_grad_()).requires_grad


@pytest.mark.parametrize("name", available("toco.filters"))
def test_every_filter_takes_position_and_colour_in_their_own_units(name):
    """Stretching distances and sigmas together changes nothing."""
    generator = torch.Generator().manual_seed(0)
    image, values = torch.rand(3, 8, 8, generator=generator) * 64, torch.rand(1, 8, 8, generator=generator)
    expected = filters.build(name, image, 8.0, 4.0)(values)
    torch.testing.assert_close(filters.build(name, image * 2, 16.0, 4.0)(values), expected)
    far = filters.build(name, image * 0, 8.0, 4.0)(values)
    near = filters.build(name, image * 0, 8.0, 8.0)(values)
    assert (near > far).all()


def test_lattice_is_the_gaussian_but_for_a_factor():
    """The factor on photographs of this size is 0.59 to 0.61, here 0.54; how full the lattice is decides."""
    image = blobs(112)
    maps = torch.nn.functional.interpolate(image[None] / 25, scale_factor=0.125).softmax(1)
    maps = torch.nn.functional.interpolate(maps, size=(112, 112), mode="bilinear")[0]
    by_exact = filters.build("exact", image, 15.0, 50.0)(maps)
    by_lattice = filters.build("lattice", image, 15.0, 50.0)(maps)
    assert 0.52 < (by_lattice * maps).sum() / (by_exact * maps).sum() < 0.62
    assert torch.cosine_similarity(by_lattice.flatten(), by_exact.flatten(), dim=0) > 0.995


@pytest.mark.parametrize("name", available("toco.filters"))
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_filter_gives_the_same_on_cuda(name):
    image, values = blobs(64), torch.rand(5, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = filters.build(name, image, 15.0, 50.0)(values)
    result = filters.build(name, image.cuda(), 15.0, 50.0)(values.cuda())
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_wrong_settings_are_refused():
    image = torch.zeros(3, 4, 4)
    with pytest.raises(ValueError, match="Did you mean 'lattice'"):
        filters.build("latice", image, 15.0, 50.0)
    with pytest.raises(ValueError, match="expected positive standard deviations"):
        filters.build("exact", image, 0.0, 50.0)
    with pytest.raises(ValueError, match="positive"):
        filters.build("lattice", image, 15.0, float("nan"))
