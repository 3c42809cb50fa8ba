from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data import pil_colours as pil
from toco.data import ColourConfig, ViewsConfig
from toco.data.views.colour import Colour, draw_colour
from toco.data.views.colour_ops import Colours, change_colours

GOLDEN = {
    **{f"brightness_{f}": Colour(jitter=(("brightness", f),)) for f in (0.6, 1.0, 1.4)},
    **{f"contrast_{f}": Colour(jitter=(("contrast", f),)) for f in (0.6, 1.0, 1.4)},
    **{f"saturation_{f}": Colour(jitter=(("saturation", f),)) for f in (0.8, 1.2)},
    **{f"hue_{f}": Colour(jitter=(("hue", f),)) for f in (-0.1, -0.03, 0.05, 0.1)},
    **{f"gaussian_blur_radius_{r}": Colour(blur_radius=r) for r in (0.1, 0.5, 1.0, 1.37, 2.0)},
    "solarize_threshold_128": Colour(solarise_from=128),
    "grayscale3": Colour(grey=True),
}
PIL = {
    "brightness": pil.brightness,
    "contrast": pil.contrast,
    "saturation": pil.saturation,
    "hue": pil.hue,
}
EVERYTHING = ColourConfig(solarise_probability=0.3, grey_probability=0.3, blur_probability=0.6)
STILL = ColourConfig(jitter_probability=0, grey_probability=0, blur_probability=0)


def changed(
    images: Sequence[np.ndarray], drawn: Sequence[Colour], device: str = "cpu"
) -> np.ndarray:
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return change_colours(pixels.to(device), Colours.of(drawn)).permute(0, 2, 3, 1).cpu().numpy()


def photos(num: int = 12, height: int = 37, width: int = 50) -> np.ndarray:
    """Smooth and noisy images with saturated, grey and black parts."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (num, height, width, 3), dtype=np.uint8)
    for image in images[::2]:
        small = Image.fromarray(image[:5, :6]).resize((width, height), Image.Resampling.BICUBIC)
        image[:] = np.asarray(small)
    images[:, :8, :8] = images[:, :8, :8, :1]
    images[:, -4:] = 0
    return images


@pytest.fixture(scope="module")
def all_colours() -> np.ndarray:
    """Every third level of every colour, the last included: 86^3 pixels."""
    levels = np.arange(0, 256, 3, dtype=np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(
        86 * 4, -1, 3
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_operation_is_the_official_one_exactly(golden, name: str) -> None:
    g = golden("augment_ops")
    np.testing.assert_array_equal(changed([g["image"]], [GOLDEN[name]])[0], g[name])


@pytest.mark.parametrize("part", PIL)
def test_every_colour_becomes_what_pil_makes_of_it(all_colours: np.ndarray, part: str) -> None:
    for amount in (
        (-0.5, -0.1, 0.0, 0.003, 0.07, 0.5)
        if part == "hue"
        else (0.0, 0.6, 0.8123, 1.0, 1.2345, 2.0)
    ):
        expected = np.asarray(PIL[part](Image.fromarray(all_colours), amount))
        np.testing.assert_array_equal(
            changed([all_colours], [Colour(jitter=((part, amount),))])[0], expected
        )


@pytest.mark.parametrize("radius", [0.0, 0.05, 0.7, 1.6, 1.8, 3.3, 7.5])
@pytest.mark.parametrize("size", [(37, 50), (3, 5), (1, 9)])
def test_blur_of_any_radius_is_pils(radius: float, size: tuple[int, int]) -> None:
    image = photos(1, 40, 60)[0][: size[0], : size[1]]
    expected = np.asarray(pil.blur(Image.fromarray(image), radius))
    np.testing.assert_array_equal(changed([image], [Colour(blur_radius=radius)])[0], expected)


@pytest.mark.parametrize(
    "config",
    [EVERYTHING, ViewsConfig().first_view, ViewsConfig().second_view],
    ids=["everything", "first", "second"],
)
def test_chains_of_a_batch_are_those_of_pil_one_by_one_from_the_same_random_numbers(
    config: ColourConfig,
) -> None:
    images = photos()
    for round_ in range(8):
        ours, theirs = (
            [np.random.default_rng([round_, i]) for i in range(len(images))] for _ in range(2)
        )
        drawn = [draw_colour(rng, config) for rng in ours]
        expected = [
            np.asarray(pil.change_colours(Image.fromarray(image), rng, config))
            for image, rng in zip(images, theirs, strict=True)
        ]
        np.testing.assert_array_equal(changed(images, drawn), expected)
        # What is drawn after the colours is what was drawn after them when they were applied at
        # once.
        assert [rng.bit_generator.state for rng in ours] == [
            rng.bit_generator.state for rng in theirs
        ]


def test_a_view_does_not_depend_on_the_batch_it_is_in() -> None:
    images = photos()
    drawn = [draw_colour(np.random.default_rng(i), EVERYTHING) for i in range(len(images))]
    alone = [changed([image], [colour])[0] for image, colour in zip(images, drawn, strict=True)]
    np.testing.assert_array_equal(changed(images, drawn), alone)


def test_pieces_of_a_batch_on_a_processor_are_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos()
    drawn = [draw_colour(np.random.default_rng(i), EVERYTHING) for i in range(len(images))]
    whole = changed(images, drawn)
    monkeypatch.setattr("toco.data.views.colour_ops._CPU_PIXELS", 5 * images[0].size // 3)
    np.testing.assert_array_equal(changed(images, drawn), whole)


def test_nothing_drawn_changes_nothing() -> None:
    assert draw_colour(np.random.default_rng(0), STILL) == Colour()
    np.testing.assert_array_equal(changed(photos(), [Colour()] * 12), photos())


def test_probabilities_and_strengths_are_used() -> None:
    drawn = [draw_colour(np.random.default_rng(i), EVERYTHING) for i in range(1000)]
    chances = (
        lambda c: len(c.jitter) == 4,
        lambda c: c.grey,
        lambda c: c.blur_radius > 0,
        lambda c: c.solarise_from < 256,
    )
    shares = [np.mean([happened(c) for c in drawn]) for happened in chances]
    np.testing.assert_allclose(shares, [0.8, 0.3, 0.6, 0.3], atol=0.05)
    assert {c.solarise_from for c in drawn} == {128, 256}
    radii = [c.blur_radius for c in drawn if c.blur_radius]
    assert 0.1 < min(radii) < 0.13 < 1.97 < max(radii) < 2
    amounts = {part: [dict(c.jitter)[part] for c in drawn if c.jitter] for part in PIL}
    for part, centre, spread in (
        ("brightness", 1, 0.4),
        ("contrast", 1, 0.4),
        ("saturation", 1, 0.2),
        ("hue", 0, 0.1),
    ):
        values = np.array(amounts[part]) - centre
        assert 0.97 * spread < values.max() < spread
        assert -spread < values.min() < -0.97 * spread
    orders = {tuple(part for part, _ in c.jitter) for c in drawn if c.jitter}
    assert len(orders) == 24


def test_the_jitter_of_the_official_rca_can_be_said() -> None:
    # torchvision's ColorJitter(0.3, 0.3, 0.3, 0.1): always, in random order, and nothing else.
    config = STILL.model_copy(
        update={
            "jitter_probability": 1.0,
            "brightness": 0.3,
            "contrast": 0.3,
            "saturation": 0.3,
            "hue": 0.1,
        }
    )
    drawn = [draw_colour(np.random.default_rng(i), config) for i in range(1000)]
    orders = [tuple(part for part, _ in colour.jitter) for colour in drawn]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 24
    assert 20 < min(counts) <= max(counts) < 70
    assert {colour[1:] for colour in drawn} == {Colour()[1:]}
    for part, low, high in (
        *((part, 0.7, 1.3) for part in ("brightness", "contrast", "saturation")),
        ("hue", -0.1, 0.1),
    ):
        amounts = np.array([dict(colour.jitter)[part] for colour in drawn])
        width = high - low
        assert low < amounts.min() < low + 0.02 * width < high - 0.02 * width < amounts.max() < high
        np.testing.assert_allclose(
            np.quantile(amounts, [0.25, 0.5, 0.75]),
            [low + q * width for q in (0.25, 0.5, 0.75)],
            atol=0.05 * width,
        )


@pytest.mark.parametrize("part", PIL)
def test_a_part_without_strength_is_left_out_and_leaves_the_others_numbers(part: str) -> None:
    certain = EVERYTHING.model_copy(update={"jitter_probability": 1.0})
    without = certain.model_copy(update={part: 0.0})
    for seed in range(20):
        whole, rest = (
            draw_colour(np.random.default_rng(seed), config) for config in (certain, without)
        )
        assert rest.jitter == tuple(drawn for drawn in whole.jitter if drawn[0] != part)
        assert rest[1:] == whole[1:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_makes_the_same_pixels_within_one_level() -> None:
    images = photos(32)
    drawn = [draw_colour(np.random.default_rng(i), EVERYTHING) for i in range(len(images))]
    difference = changed(images, drawn, "cuda").astype(int) - changed(images, drawn).astype(int)
    assert np.abs(difference).max() <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_is_not_waited_for() -> None:
    images = torch.from_numpy(photos(8)).permute(0, 3, 1, 2).contiguous().cuda()
    colours = Colours.of(
        [draw_colour(np.random.default_rng(i), EVERYTHING) for i in range(8)]
    ).pin_memory()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = change_colours(images, colours)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Nothing was waited for: a kernel that ran before what it reads was copied would show here.
    difference = result.cpu().int() - change_colours(images.cpu(), colours).int()
    assert difference.abs().max() <= 1
