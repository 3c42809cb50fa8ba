import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from toco.cam.config import CrfConfig
from toco.cam.crf import dense_crf
from toco.config import digest, replace
from toco.data.views.normalise import denormalise_255
from toco.predict.config import InferenceConfig
from toco.predict.inference import class_probabilities, least_side_px
from toco.recipes import shapes_nano

OFFICIAL_COCO = {
    "size_px": 448,
    "scales": (1.0, 1.25, 1.5),
    "merge_flips": "max",
    "merge_scales": "sum",
}
PLAIN = {"scales": (1.0,), "flip": False, "crf": None}


def image_of(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def probabilities_of(method, image, **settings):
    return class_probabilities(method, image, InferenceConfig(**settings), "cpu")


def with_logits(method, logits_of):
    """The method with other logits, and the list of the sizes that it sees."""
    seen = []

    def segmentation_logits(images):
        assert not torch.is_grad_enabled()
        seen.append(tuple(images.shape))
        return logits_of(images)

    method.segmentation_logits = segmentation_logits
    return seen


def of_width(images):
    """Logits 0, w / 10 and -w / 10 of an image of w columns, and in its
    mirror image half as much.
    """
    value = torch.tensor([0.0, 1.0, -1.0])[None, :, None, None].expand(1, 3, *images.shape[2:])
    return torch.cat([value, value / 2])[: len(images)] * images.shape[3] / 10


def differences(probabilities):
    """Logits by how much above those of the background."""
    log = probabilities.log()
    return (log[1:] - log[0])[:, 0, 0]


def test_on_voc_mirror_images_are_summed_and_scales_compete(method):
    seen = with_logits(method, of_width)
    probabilities = probabilities_of(method, image_of(6, 8), crf=None)
    assert seen == [(2, 3, 6, 8), (2, 3, 9, 12), (2, 3, 7, 10)]
    assert probabilities.shape == (3, 6, 8)
    # The largest of 1.5 x 0.8, 1.5 x 1.2 and 1.5 x 1.0, and of their negatives.
    torch.testing.assert_close(differences(probabilities), torch.tensor([1.8, -1.2]))


def test_on_coco_mirror_images_compete_and_scales_are_summed(method):
    seen = with_logits(method, of_width)
    probabilities = probabilities_of(
        method, image_of(6, 8), **OFFICIAL_COCO | {"size_px": 16}, crf=None
    )
    assert seen == [(2, 3, 16, 16), (2, 3, 20, 20), (2, 3, 24, 24)]
    assert probabilities.shape == (3, 6, 8)
    # 1.6 + 2.0 + 2.4, and half of it below zero, where the mirror image is the larger one.
    torch.testing.assert_close(differences(probabilities), torch.tensor([6.0, -3.0]))


@pytest.mark.parametrize(("rule", "expected"), [("sum", [3, 3, 3, 3]), ("max", [3, 2, 2, 3])])
def test_a_mirror_image_is_turned_back(method, rule, expected):
    """Logits are the number of the column, whatever the image."""

    def columns(images):
        column = torch.arange(images.shape[3], dtype=torch.float32).expand(
            len(images), 1, *images.shape[2:]
        )
        return torch.cat([0 * column, column, 0 * column], 1)

    with_logits(method, columns)
    probabilities = probabilities_of(
        method, image_of(2, 4), scales=(1.0,), merge_flips=rule, crf=None
    )
    found = (probabilities[1].log() - probabilities[0].log())[0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_without_scales_and_mirror_images_it_is_the_softmax(method):
    image = image_of(5, 4)
    expected = torch.tensor(image).permute(2, 0, 1)[[2, 0, 1]].float().softmax(0)
    torch.testing.assert_close(
        probabilities_of(method, image, **PLAIN), expected, rtol=1e-3, atol=1e-5
    )


def test_the_crf_is_that_of_the_image_itself(method):
    with_logits(method, lambda images: denormalise_255(images, truncate=False)[:, [2, 0, 1]] / 50)
    image, crf = image_of(12, 10), CrfConfig(iterations=2, bilateral_sigma_rgb=40)
    levels = torch.tensor(image).permute(2, 0, 1)[None].float()
    before = probabilities_of(method, image, crf=None)
    after = probabilities_of(method, image, crf=crf)
    assert torch.equal(after, dense_crf(levels, before[None], crf)[0])
    assert (after - before).abs().max() > 0.1


def test_tiles_of_a_local_network_leave_no_seam(method):
    """Patches of 4 px, which see nothing but themselves; sides are no multiples of them."""
    method.patch_size_px = 4
    seen = with_logits(
        method, lambda images: avg_pool2d(denormalise_255(images, truncate=False), 4) / 50
    )
    image = image_of(83, 130)
    whole = probabilities_of(method, image, crf=None)
    assert [shape[2:] for shape in seen] == [(83, 130), (124, 195), (103, 162)]
    seen.clear()
    tiled = probabilities_of(method, image, crf=None, tile_px=50, tile_overlap_px=9)
    assert {shape[2:] for shape in seen} == {(48, 48)}
    # Twelve patches a tile, two of them shared: 20 x 32, 31 x 48 and 25 x 40 patches.
    assert len(seen) == 2 * 3 + 3 * 5 + 3 * 4
    torch.testing.assert_close(tiled, whole, rtol=1e-4, atol=1e-6)


def test_in_an_overlap_one_tile_goes_over_into_the_other(method):
    """The first tile says 0, the second 6; 27 patches of 2 px, 16 to a tile, so that 5 overlap."""
    method.patch_size_px, said = 2, iter((0.0, 6.0))

    def logits(images):
        value = torch.full((1, 1, images.shape[2] // 2, images.shape[3] // 2), next(said))
        return torch.cat([0 * value, value, 0 * value], 1)

    with_logits(method, logits)
    probabilities = probabilities_of(
        method, image_of(32, 54), **PLAIN, tile_px=32, tile_overlap_px=10
    )
    at_patches = (probabilities[1].log() - probabilities[0].log())[8].view(27, 2).mean(1)
    blended = torch.tensor([0.0] * 11 + [1, 2, 3, 4, 5] + [6.0] * 11)
    # The mean of two pixels is the patch's value where the neighbours differ by as much on both
    # sides.
    torch.testing.assert_close(
        at_patches[[5, 12, 13, 14, 22]], blended[[5, 12, 13, 14, 22]], rtol=1e-4, atol=1e-4
    )
    assert (at_patches.diff() > -1e-4).all()


def test_a_small_image_is_not_cut(method):
    seen = with_logits(method, of_width)
    probabilities_of(method, image_of(30, 32), **PLAIN, tile_px=32, tile_overlap_px=8)
    assert seen == [(1, 3, 30, 32)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": (1.0, 0.0)}, "scales.1\n.*greater than 0"),
        ({"scales": ()}, "at least 1 item"),
        ({"tile_px": 64, "tile_overlap_px": 33}, "more than half of tile_px 64"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        InferenceConfig(**settings)


def test_the_least_side_is_that_of_a_patch_at_every_scale(method):
    method.patch_size_px = 16
    assert (
        least_side_px(method, InferenceConfig(scales=(1.0, 0.6))) == 27
    )  # int(27 * 0.6) is 16, int(26 * 0.6) is 15
    assert least_side_px(method, InferenceConfig(scales=(2.0, 1.5))) == 11
    assert least_side_px(method, InferenceConfig(size_px=64)) == 1


def test_a_scaled_image_keeps_a_pixel_for_the_network_to_refuse(method):
    seen = with_logits(method, of_width)
    probabilities_of(method, image_of(1, 9), scales=(0.5,), crf=None)
    assert seen == [(2, 3, 1, 4)]


def test_it_is_a_setting_of_a_run_without_effect_on_its_training():
    recipe = shapes_nano.recipe()
    changed = replace(recipe, {"inference.crf": "null", "inference.scales": "[1.0, 0.5]"})
    assert changed.inference == InferenceConfig(crf=None, scales=(1.0, 0.5))
    assert digest(changed) == digest(recipe)
    assert replace(recipe, {"inference.crf.iterations": "3"}).inference.crf == CrfConfig(
        iterations=3
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            InferenceConfig(),
            ("own size", "1, 1.5, 1.25", "mirror images, merged by sum", "scales merged by max"),
        ),
        (
            InferenceConfig(**OFFICIAL_COCO),
            ("448 x 448 px", "merged by max", "scales merged by sum", "10 iterations"),
        ),
        (InferenceConfig(**PLAIN, tile_px=512), ("no mirror images", "tiles of 512 px", "no CRF")),
    ],
)
def test_the_protocol_says_what_counts(config, words):
    assert all(word in config.protocol() for word in words), config.protocol()


def test_auto_is_resolved_for_the_record():
    assert InferenceConfig().resolved("cpu").crf.filter_name == "lattice"
    assert InferenceConfig(crf=None).resolved("cpu").crf is None
