import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ImageOps import mirror
from pydantic import ValidationError

from tests.data.views.test_colour import GOLDEN as COLOURS
from toco.data import ColourConfig, Views, ViewsConfig, make_views
from toco.data.views.colour_ops import Colours, change_colours
from toco.data.views.views import _draw_part, padded_crop, rescale, resized_crop

OPS = {
    **{f"rescale_{s}": (rescale, s) for s in (0.5, 0.77, 1.0, 1.31, 2.0)},
    "hflip": (mirror,),
    "resized_crop_bicubic_top3_left5_h40_w50_to64": (resized_crop, (3, 5, 40, 50), 64),
    "resized_crop_bicubic_top0_left0_h54_w72_to32": (resized_crop, (0, 0, 54, 72), 32),
    "resized_crop_bicubic_top10_left20_h20_w16_to48": (resized_crop, (10, 20, 20, 16), 48),
}
SQUASH = {"view_geometry": "squash", "rescale": (1.0, 1.0)}
STILL = ColourConfig(jitter_probability=0, grey_probability=0, blur_probability=0)


@pytest.mark.parametrize("name", OPS)
def test_geometry_is_the_official_one_exactly(golden, name: str) -> None:
    g = golden("augment_ops")
    operation, *arguments = OPS[name]
    np.testing.assert_array_equal(
        np.asarray(operation(Image.fromarray(g["image"]), *arguments)), g[name]
    )


def test_every_recorded_operation_is_tested(golden) -> None:
    rest = (
        {n for n in golden("augment_ops") if not n.startswith("random_crop")}
        - OPS.keys()
        - COLOURS.keys()
    )
    assert rest == {"image", "to_tensor_normalise_chw"}


@pytest.mark.parametrize(
    "case", ["0_size48", "1_size64", "2_size60", "3_size96", "4_size96", "5_size72"]
)
def test_padded_crop_and_box(golden, case: str) -> None:
    g = golden("augment_ops")
    offsets = g[f"random_crop{case}__Hpad_Wpad_Hstart_Wstart"]
    crop, box = padded_crop(
        Image.fromarray(g["image"]), int(case.split("size")[1]), *map(int, offsets)
    )
    np.testing.assert_array_equal(np.asarray(crop), g[f"random_crop{case}__out"])
    assert list(box) == g[f"random_crop{case}__img_box"].tolist()


def views(seed: int = 0, image: np.ndarray | None = None, **settings: object) -> Views:
    config = ViewsConfig.model_validate(
        {"crop_size_px": 64, "first_view": STILL, "second_view": STILL, **settings}
    )
    return make_views(photo() if image is None else image, np.random.default_rng(seed), config)


def photo(height: int = 54, width: int = 72) -> np.ndarray:
    # No black pixel and no mirror symmetry.
    rng = np.random.default_rng(1)
    return rng.integers(1, 256, (height, width, 3), dtype=np.uint8)


def inside(shape: tuple[int, ...], box: np.ndarray) -> np.ndarray:
    y0, y1, x0, x1 = box
    mask = np.zeros(shape[:2], dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_aligned_views_share_one_geometry() -> None:
    mirrored = 0
    for seed in range(40):
        flipped = views(seed, rescale=(0.5, 0.9))
        np.testing.assert_array_equal(flipped.images, flipped.crop_source)
        # The padding is black and lies exactly outside the box, in mirrored samples too.
        np.testing.assert_array_equal(
            (flipped.images > 0).any(axis=0), inside((64, 64), flipped.valid_box)
        )
        # Without flips the random numbers are the same, so this is the same sample, unmirrored.
        plain = views(seed, rescale=(0.5, 0.9), flip_probability=0)
        np.testing.assert_array_equal(
            (plain.images > 0).any(axis=0), inside((64, 64), plain.valid_box)
        )
        if not np.array_equal(plain.images, flipped.images):
            mirrored += 1
            np.testing.assert_array_equal(plain.images, flipped.images[..., ::-1])
            assert flipped.valid_box.tolist() == [
                *plain.valid_box[:2],
                *(64 - plain.valid_box[:1:-1]),
            ]
    assert 10 < mirrored < 30


def test_official_views_flip_apart_and_leave_the_box() -> None:
    differ = wrong_box = 0
    for seed in range(60):
        v = views(seed, rescale=(0.5, 0.9), view_geometry="official")
        if not np.array_equal(v.images, v.crop_source):
            differ += 1
            np.testing.assert_array_equal(v.images, v.crop_source[..., ::-1])
        shown = (v.images > 0).any(axis=0)
        box = inside((64, 64), v.valid_box)
        assert np.array_equal(shown, box) or np.array_equal(shown[:, ::-1], box)
        wrong_box += not np.array_equal(shown, box)
    # The facts measured 32 of 60 for the local crops.
    assert 20 <= differ <= 40
    assert 15 <= wrong_box <= 40


def test_squashed_views_are_the_whole_image_at_every_aspect_ratio() -> None:
    # Both halves of the image stay, whatever its shape, and nothing is padding.
    image = np.full((30, 200, 3), 10, dtype=np.uint8)
    image[:, 100:] = 250
    v = views(image=image, flip_probability=0, **SQUASH)
    assert v.images.shape == (3, 64, 64)
    assert v.valid_box.tolist() == [0, 64, 0, 64]
    assert (v.images[..., :30] == 10).all()
    assert (v.images[..., 34:] == 250).all()
    np.testing.assert_array_equal(v.images, v.crop_source)


def test_a_squashed_view_averages_pixels_with_the_weights_of_a_triangle() -> None:
    # From 8 to 4 px: the triangle is 4 px wide, so that the weights of 4 pixels are 1, 3, 3, 1 / 8;
    # at an edge those within the image, 3, 3, 1 / 7.
    row = np.array([16, 240, 80, 8, 160, 48, 200, 96], dtype=np.float64)
    image = np.repeat(row[None, :, None], 3, axis=2).repeat(5, axis=0).astype(np.uint8)
    v = views(image=image, crop_size_px=4, flip_probability=0, **SQUASH)
    expected = [
        (3 * row[0] + 3 * row[1] + row[2]) / 7,
        (row[1] + 3 * row[2] + 3 * row[3] + row[4]) / 8,
        (row[3] + 3 * row[4] + 3 * row[5] + row[6]) / 8,
        (row[5] + 3 * row[6] + 3 * row[7]) / 7,
    ]
    assert np.abs(v.images - np.array(expected)).max() <= 1


def test_squashed_views_are_mirrored_together() -> None:
    plain, flipped = (views(3, flip_probability=p, **SQUASH) for p in (0.0, 1.0))
    for name in ("images", "crop_source", "second_view"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(flipped, name)[..., ::-1])
    assert flipped.valid_box.tolist() == [0, 64, 0, 64]
    drawn = [views(seed, **SQUASH) for seed in range(60)]
    mirrored = sum(np.array_equal(v.images, flipped.images) for v in drawn)
    assert mirrored + sum(np.array_equal(v.images, plain.images) for v in drawn) == 60
    assert 18 < mirrored < 42
    assert all(np.array_equal(v.images, v.crop_source) for v in drawn)


def test_a_scale_that_squash_would_not_use_is_refused() -> None:
    message = (
        r"rescale: .* squash .* expected \[1\.0, 1\.0\], got \(0\.5, 2\.0\); set views\.rescale"
    )
    with pytest.raises(ValidationError, match=message):
        ViewsConfig(view_geometry="squash")
    assert ViewsConfig(view_geometry="squash", rescale=(1, 1)).rescale == (1.0, 1.0)


def test_certain_flip_mirrors_everything() -> None:
    plain, flipped = (views(3, flip_probability=p) for p in (0.0, 1.0))
    for name in ("images", "crop_source", "second_view"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(flipped, name)[..., ::-1])


def test_crop_of_a_large_image_has_no_padding() -> None:
    v = views(image=photo(200, 300), rescale=(1.0, 1.0), flip_probability=0)
    assert v.valid_box.tolist() == [0, 64, 0, 64]
    # It is a part of the image, unscaled.
    windows = np.lib.stride_tricks.sliding_window_view(photo(200, 300)[..., 0], (64, 64))
    assert (windows == v.images[0]).all(axis=(2, 3)).sum() == 1


def test_padding_lies_on_every_side() -> None:
    boxes = np.array([views(seed, rescale=(0.5, 0.5)).valid_box for seed in range(80)])
    # 27 x 36 px on 64: the first row is uniform on 0..37, the first column on 0..28.
    assert (boxes[:, 1] - boxes[:, 0] == 27).all()
    assert (boxes[:, 3] - boxes[:, 2] == 36).all()
    assert boxes[:, 0].min() < 5
    assert boxes[:, 0].max() > 32
    assert 14 < boxes[:, 0].mean() < 23
    assert 10 < boxes[:, 2].mean() < 18


def test_second_view_is_of_the_image_before_rescaling() -> None:
    image = np.full((54, 72, 3), 77, dtype=np.uint8)
    v = views(image=image, rescale=(0.5, 0.5))
    # Nothing of it is padding, though the rescaled image is smaller than the crop.
    assert (v.second_view == 77).all()
    assert (v.images == 0).any()


def test_parts_have_the_distribution_of_random_resized_crop() -> None:
    config, rng = ViewsConfig(), np.random.default_rng(0)
    parts = np.array([_draw_part(300, 400, rng, config) for _ in range(2000)])
    top, left, height, width = parts.T
    area, aspect = height * width / 120_000, width / height
    assert (top >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    assert 0.395 < area.min() < 0.42
    assert area.max() > 0.97
    assert 0.74 < aspect.min() < 0.78
    assert 1.30 < aspect.max() < 1.35


def test_a_long_image_gives_the_central_part() -> None:
    assert _draw_part(100, 1000, np.random.default_rng(0), ViewsConfig()) == (0, 433, 100, 133)


def test_only_the_first_view_is_blurred_by_default() -> None:
    config = ViewsConfig(crop_size_px=32)
    drawn = [make_views(photo(), np.random.default_rng(seed), config) for seed in range(200)]
    assert all(v.first_colour.blur_radius > 0 for v in drawn)
    assert all(v.first_colour.solarise_from == 256 for v in drawn)
    assert 8 < sum(v.second_colour.blur_radius > 0 for v in drawn) < 35
    assert 25 < sum(v.second_colour.solarise_from == 128 for v in drawn) < 57


def test_views_are_the_recorded_ones() -> None:
    # Recorded when colours were changed by PIL while they were drawn: no sample has changed since.
    rng = np.random.default_rng(7)
    v = make_views(photo(), rng, ViewsConfig(crop_size_px=48))
    pixels = torch.from_numpy(np.stack([v.images, v.second_view]))
    changed = change_colours(pixels, Colours.of([v.first_colour, v.second_colour]))
    sums = [int(view.sum()) for view in changed]
    assert (sums, int(v.crop_source.sum())) == ([1_124_158, 558_486], 906_678)
    assert rng.random() == 0.9171677731928523


def test_same_generator_same_views() -> None:
    config = ViewsConfig(crop_size_px=48)
    a, b, c = (make_views(photo(), np.random.default_rng(seed), config) for seed in (5, 5, 6))
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.second_view, b.second_view)
    assert (a.first_colour, a.second_colour) == (b.first_colour, b.second_colour)
    assert not np.array_equal(a.images, c.images)


def test_tiny_images_survive() -> None:
    assert rescale(Image.new("RGB", (1, 3)), 0.5).size == (1, 1)
    assert views(image=photo(1, 3)).images.shape == (3, 64, 64)


@pytest.mark.parametrize(
    "settings",
    [
        {"rescale": (2.0, 1.0)},
        {"rescale": (0.0, 1.0)},
        {"second_view_area": (0.5, 1.5)},
        {"crop_size_px": 0},
        {"flip_probability": 1.1},
        {"view_geometry": "other"},
        {"first_view": {"blur_radius": (2.0, 0.1)}},
        {"first_view": {"hue": 0.6}},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ViewsConfig.model_validate(settings)
