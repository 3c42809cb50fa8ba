import math

import pytest
import torch
import torch.nn.functional as F

from toco.cam.config import ParConfig
from toco.cam.par import neighbour_affinity, propagate, refine_pseudo_label, refined_probabilities

PAR = ParConfig()


def refine(images, maps, config=PAR):
    return propagate(maps, neighbour_affinity(images, config), config)


CASES = [
    "default",
    "default_f64",
    "one_iter",
    "zero_iter",
    "mask_lowres_align_corners",
    "const_image",
    "tiny_smaller_than_dilation",
    "dil_1_2",
    "uint8_levels",
]


@pytest.mark.parametrize("case", CASES)
def test_every_recorded_propagation(golden_cases, case):
    cases = golden_cases("par")
    assert {name for name in cases if "img" in cases[name]} == set(CASES)
    a = cases[case]
    maps = a["mask"]
    if (
        maps.shape[-2:] != a["img"].shape[-2:]
    ):  # The official module resizes its input; here that is the caller's.
        maps = F.interpolate(maps, a["img"].shape[-2:], mode="bilinear", align_corners=True)
    config = ParConfig(dilations=a["dilations"].tolist(), iterations=int(a["iters"]))
    result = refine(a["img"], maps, config)
    tolerance = 1e-12 if result.dtype == torch.float64 else 2e-6
    torch.testing.assert_close(result, a["out"], rtol=tolerance, atol=tolerance)


def test_recorded_impulse_and_gain(golden):
    impulse = torch.zeros(1, 1, 32, 40)
    impulse[0, 0, 16, 20] = 1
    image = torch.from_numpy(golden("par")["default__img"][:1])
    response = refine(image, impulse, ParConfig(iterations=1))
    expected = torch.from_numpy(golden("par")["impulse_r16c20_one_iter_img0"])
    torch.testing.assert_close(response, expected, rtol=2e-6, atol=1e-7)
    gain = refine(image, torch.ones(1, 1, 32, 40))
    torch.testing.assert_close(
        gain, torch.from_numpy(golden("par")["sum_gain_ones_10_iter"]), rtol=2e-6, atol=0
    )
    torch.testing.assert_close(gain, torch.full_like(gain, 1.01**10), rtol=2e-6, atol=0)


def test_recorded_neighbours_in_their_order(golden):
    """One-hot affinities pick out one neighbour after the other."""
    image = torch.from_numpy(golden("par")["default__img"][:1])
    picked = []
    for index in range(48):
        one_hot = torch.zeros(1, 32, 40, 48)
        one_hot[..., index] = 1
        picked.append(propagate(image, one_hot, ParConfig(iterations=1))[0, :, 5, 6])
    assert torch.equal(
        torch.stack(picked, dim=1),
        torch.from_numpy(golden("par")["default__neighbours_of_img0_at_r5c6"]),
    )


def test_affinity_by_hand():
    """A bright column right of a dark image; one ring of neighbours; the
    pixel left of the column.
    """
    image = torch.zeros(1, 3, 3, 3, dtype=torch.float64)
    image[..., 2] = 1
    affinity = neighbour_affinity(image, ParConfig(dilations=(1,)))[0, 1, 1]
    spread = math.sqrt((3 * (5 / 8) ** 2 + 5 * (3 / 8) ** 2) / 7)
    bright, dark = math.exp(-((1 / spread / 0.3) ** 2)), 1.0
    root = math.sqrt(2)
    mean = (4 + 4 * root) / 8
    deviation = math.sqrt((4 * (1 - mean) ** 2 + 4 * (root - mean) ** 2) / 7)
    near, far = math.exp(-((1 / deviation / 0.3) ** 2)), math.exp(-((root / deviation / 0.3) ** 2))
    for index, (colour, place) in enumerate(
        [
            (dark, far),
            (dark, near),
            (bright, far),
            (dark, near),
            (bright, near),
            (dark, far),
            (dark, near),
            (bright, far),
        ]
    ):
        expected = colour / (3 * bright + 5 * dark) + 0.01 * place / (4 * near + 4 * far)
        assert affinity[index].item() == pytest.approx(expected, rel=1e-6)


def test_mirrored_image_gives_mirrored_refinement(golden):
    image = torch.from_numpy(golden("par")["default_f64__img"])
    maps = torch.from_numpy(golden("par")["default_f64__mask"])
    mirrored = refine(image.flip(-1), maps.flip(-1))
    torch.testing.assert_close(mirrored, refine(image, maps).flip(-1))


def test_every_recorded_refinement(golden_cases):
    cases = golden_cases("refine_cams_with_bkg_v2")
    assert len(cases) == 7
    for case, a in cases.items():
        high, low = a["high_low"].tolist()
        label = refine_pseudo_label(
            a["images"], a["cams"], a["cls_labels"], a["img_box"], low, high, PAR
        )
        # Where the two best probabilities nearly tie, another order of summation may flip the
        # label; not in a real tie.
        margin = a["argmax_margin_min_over_h_l"]
        is_clear = (margin == 0) | (margin > 1e-6)
        assert torch.equal(label[is_clear], a["label"].long()[is_clear]), case
        assert is_clear.float().mean() > 0.99, case

        refined = refined_probabilities(a["images"], a["cams"], a["cls_labels"], (high, low), PAR)
        for index, class_labels in enumerate(a["cls_labels"]):
            present = torch.cat([torch.ones(1), class_labels]).bool()
            for background, name in enumerate("hl"):
                result = refined[index, background]
                torch.testing.assert_close(
                    result[present], a[f"par_img{index}_{name}"], rtol=2e-6, atol=1e-6
                )
                assert (result[~present] == 0).all()


def test_scores_of_absent_classes_do_not_matter(golden_cases):
    a = golden_cases("refine_cams_with_bkg_v2")["two_class"]
    noise = torch.rand(a["cams"].shape, generator=torch.Generator().manual_seed(0))
    noisy = torch.where(a["cls_labels"][:, :, None, None] == 1, a["cams"], noise)
    clean = refine_pseudo_label(
        a["images"], a["cams"], a["cls_labels"], a["img_box"], 0.25, 0.7, PAR
    )
    assert torch.equal(
        refine_pseudo_label(a["images"], noisy, a["cls_labels"], a["img_box"], 0.25, 0.7, PAR),
        clean,
    )


def test_without_box_and_without_iterations_it_is_two_thresholds():
    """At full size and without propagation: foreground above the high score, background below the
    low one.
    """
    cam = torch.tensor([0.1, 0.2, 0.3, 0.6, 0.8, 0.9]).view(1, 1, 1, 6)
    images = torch.rand(1, 3, 1, 6)
    config = ParConfig(iterations=0, scale=1.0)
    label = refine_pseudo_label(images, cam, torch.ones(1, 1), None, 0.25, 0.7, config)
    assert label.tolist() == [[[0, 0, 255, 255, 1, 1]]]


def test_thresholds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"low is 0\.7 and high is 0\.25"):
        refine_pseudo_label(
            torch.rand(1, 3, 4, 4), torch.rand(1, 1, 4, 4), torch.ones(1, 1), None, 0.7, 0.25, PAR
        )


def test_shapes_do_not_depend_on_the_labels():
    """Tensors without data: whatever reads a value on the host, or shapes
    a tensor by one, raises.
    """
    images, cam = torch.zeros(2, 3, 20, 24, device="meta"), torch.zeros(2, 4, 20, 24, device="meta")
    box = torch.zeros(2, 4, dtype=torch.int64, device="meta")
    label = refine_pseudo_label(images, cam, torch.zeros(2, 4, device="meta"), box, 0.25, 0.7, PAR)
    assert label.shape == (2, 20, 24)


@pytest.mark.parametrize("num_classes", [1, 2])
def test_a_cam_that_is_not_a_number_gives_classes_all_the_same(num_classes):
    """A diverged step is to be ended by its losses, not by an index that does not exist."""
    cam = torch.rand(1, num_classes, 8, 8)
    cam[0, 0, :, 4:] = torch.nan
    label = refine_pseudo_label(
        torch.rand(1, 3, 8, 8), cam, torch.ones(1, num_classes), None, 0.25, 0.7, PAR
    )
    assert set(label.unique().tolist()) <= {*range(num_classes + 1), 255}
