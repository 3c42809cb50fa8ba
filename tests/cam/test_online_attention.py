from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toco.cam.config import AttentionLabelConfig, CrfConfig
from toco.cam.online_attention import (
    StoredAttention,
    accumulate_attention,
    attention_scores,
    attention_to_pseudo_label,
    refine_attention,
    resize_attention,
)

LABELLED = (
    "one_class_crf",
    "three_classes_crf",
    "two_classes_without_crf",
    "little_foreground_all_void",
    "all_salient",
)
CONFIG = AttentionLabelConfig()


def one_map(*levels, present=True):
    return StoredAttention(
        maps=torch.tensor(levels, dtype=torch.uint8).view(1, 1, 1, -1),
        has_map=torch.tensor([[present]]),
    )


def accumulated(stored, maps, score, *, label=1.0, is_last=False):
    result = accumulate_attention(
        stored,
        torch.tensor(maps).view(1, 1, 1, -1),
        torch.tensor([[label]]),
        torch.tensor([[score]]),
        is_last,
    )
    return result.maps.flatten().tolist(), result.has_map.item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_epoch_of_the_accumulation_is_as_recorded(golden_cases, dtype):
    case = golden_cases("rca_attention")["accumulated"]
    maps, class_labels = case["maps"].to(dtype), case["labels"].to(dtype)
    num_epochs, num_images, num_classes, *size = maps.shape
    last_epoch = case["last_epoch"].item()
    stored = StoredAttention.empty(num_images, num_classes, tuple(size), "cpu")
    assert num_epochs == last_epoch + 1 == 6
    for epoch in range(num_epochs):
        if epoch >= 1:
            scores = maps[epoch].mean(dim=(2, 3)).sigmoid()
            stored = accumulate_attention(
                stored, maps[epoch], class_labels, scores, epoch == last_epoch
            )
        found = stored.maps.short().masked_fill(~stored.has_map[:, :, None, None], -1)
        assert torch.equal(found, case["stored"][epoch]), epoch


def test_accumulation_by_hand():
    nothing, old = one_map(0, 0, 0, present=False), one_map(10, 200, 0)
    # 255 * 1/4 = 63.75.
    assert accumulated(nothing, [-1.0, 1.0, 4.0], 0.5) == ([0, 64, 255], True)
    assert accumulated(old, [-1.0, 1.0, 4.0], 0.5) == ([10, 200, 255], True)
    # A map without a positive value is a map of zeros.
    assert accumulated(nothing, [-1.0, -2.0, 0.0], 0.5) == ([0, 0, 0], True)
    # The lowest score still counts; a lower one counts only in the last epoch, for a first map.
    at = torch.tensor(0.1).item()
    below = torch.nextafter(torch.tensor(0.1), torch.tensor(0.0)).item()
    assert accumulated(nothing, [0.0, 1.0, 4.0], at) == ([0, 64, 255], True)
    assert accumulated(nothing, [0.0, 1.0, 4.0], below) == ([0, 0, 0], False)
    assert accumulated(nothing, [0.0, 1.0, 4.0], below, is_last=True) == ([0, 64, 255], True)
    assert accumulated(old, [0.0, 1.0, 4.0], below, is_last=True) == ([10, 200, 0], True)
    # Absent classes have no map, not even in the last epoch.
    for is_last in (False, True):
        found = accumulated(nothing, [0.0, 1.0, 4.0], 0.9, label=0.0, is_last=is_last)
        assert found == ([0, 0, 0], False)


def test_accumulation_leaves_its_input_and_obeys_the_lowest_score():
    old = one_map(10, 200, 0)
    before = replace(old, maps=old.maps.clone())
    maps, one = torch.tensor([0.0, 1.0, 4.0]).view(1, 1, 1, 3), torch.ones(1, 1)
    merged = accumulate_attention(old, maps, one, 0.3 * one, is_last=False, min_score=0.3)
    kept = accumulate_attention(old, maps, one, 0.3 * one, is_last=False, min_score=0.31)
    assert merged.maps.flatten().tolist() == [10, 200, 255]
    assert torch.equal(kept.maps, before.maps)
    assert torch.equal(old.maps, before.maps)


@given(st.integers(0, 2**31), st.permutations(range(4)))
def test_the_order_of_epochs_has_no_effect_and_repetition_has_none(seed, order):
    generator = torch.Generator().manual_seed(seed)
    epochs = torch.randn(4, 2, 3, 4, 5, generator=generator)
    class_labels = torch.randint(0, 2, (2, 3), generator=generator).float()
    scores = torch.rand(4, 2, 3, generator=generator)

    def after(epoch_numbers):
        stored = StoredAttention.empty(2, 3, (4, 5), "cpu")
        for epoch in epoch_numbers:
            stored = accumulate_attention(
                stored, epochs[epoch], class_labels, scores[epoch], False, min_score=0.5
            )
        return stored

    expected = after(range(4))
    for found in (after(order), after([*order, *order])):
        assert torch.equal(found.maps, expected.maps)
        assert torch.equal(found.has_map, expected.has_map)


def test_maps_of_another_geometry_are_refused():
    stored = StoredAttention.empty(1, 2, (4, 5), "cpu")
    one = torch.ones(1, 2)
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 5\), got \(1, 2, 4, 1\)"):
        accumulate_attention(stored, torch.rand(1, 2, 4, 1), one, one, is_last=False)


@pytest.mark.parametrize("case", ["resize_33x50", "resize_75x100"])
def test_resized_maps_are_within_a_level_of_those_of_opencv(golden_cases, case):
    recorded = golden_cases("rca_attention")[case]
    expected = recorded["image_size"]  # the map at the image's size
    found = resize_attention(recorded["stored"][None, None], tuple(expected.shape))[0, 0]
    assert found.dtype == torch.uint8
    assert (found.int() - expected.int()).abs().max() <= 1


def test_a_resize_by_hand_and_to_the_same_size():
    maps = torch.tensor([[[[0, 100]]], [[[255, 1]]]], dtype=torch.uint8)
    # Centres of the new pixels lie at -1/4, 1/4, 3/4 and 5/4 of the old ones.
    expected = [[[[0, 25, 75, 100]]], [[[255, 192, 64, 1]]]]  # 191.5 and 64.5 round to even
    assert resize_attention(maps, (1, 4)).tolist() == expected
    assert torch.equal(resize_attention(maps, (1, 2)), maps)


@pytest.mark.parametrize("name", LABELLED)
def test_the_scores_before_the_crf_are_as_recorded(golden_cases, name):
    case = golden_cases("rca_pseudo_label")[name]
    found = attention_scores(case["attention"][None], CONFIG.background_power)[0]
    torch.testing.assert_close(found.double(), case["scores"], rtol=0, atol=1e-6)


def test_scores_by_hand():
    attention = torch.tensor([[[[0, 51, 255]], [[90, 30, 50]], [[7, 7, 7]]]], dtype=torch.uint8)
    # A constant map is 0 everywhere.
    classes = [[0, 0.2, 1], [1, 0, 1 / 3], [0, 0, 0]]
    for power, background in ((4.0, [0, 0.8**4, 0]), (1.0, [0, 0.8, 0])):
        found = attention_scores(attention, power)[0, :, 0]
        torch.testing.assert_close(found, torch.tensor([background, *classes]))


def test_maps_of_no_class_are_refused():
    with pytest.raises(ValueError, match="at least one class"):
        attention_scores(torch.zeros(1, 0, 2, 2, dtype=torch.uint8), 4.0)


@pytest.mark.parametrize("name", ["one_class_crf", "three_classes_crf"])
def test_the_refined_scores_are_those_of_the_official_crf(golden_cases, name):
    case = golden_cases("rca_pseudo_label")[name]
    images = case["image_rgb"].permute(2, 0, 1)[None].float()
    attention, expected = case["attention"][None], case["refined"]
    found = refine_attention(images, attention, CONFIG)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=5e-6)
    label = attention_to_pseudo_label(found, case["classes"][None], case["saliency"][None], CONFIG)
    assert torch.equal(label[0], case["label"].long())
    # With the channels of the image as they are, the lattice gives something else.
    other_order = refine_attention(images.flip(1), attention, CONFIG)[0]
    assert (other_order - expected).abs().max() > 1e-3


def test_the_background_power_and_the_crf_come_from_the_config():
    attention = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    without_kernels = CrfConfig(position_weight=0, bilateral_weight=0)
    config = AttentionLabelConfig(background_power=2, crf=without_kernels)
    found = refine_attention(torch.zeros(1, 3, 1, 3), attention, config)
    scores = torch.tensor([[1, 0.64, 1e-5], [1e-5, 0.2, 1]])
    torch.testing.assert_close(found[0, :, 0], scores / scores.sum(0))


@pytest.mark.parametrize("name", LABELLED)
def test_every_recorded_label(golden_cases, name):
    case = golden_cases("rca_pseudo_label")[name]
    refined, classes, saliency = (case[part][None] for part in ("refined", "classes", "saliency"))
    for probabilities in (refined, refined.float()):
        label = attention_to_pseudo_label(probabilities, classes, saliency, CONFIG)
        assert torch.equal(label[0], case["label"].long())


def test_the_rules_of_the_label_by_hand():
    # Pixels: class 0, class 1, tie with the background, conflict, salient, not quite, overruled.
    saliency = torch.tensor([[[255, 255, 51, 0, 32, 31, 26]]], dtype=torch.uint8)
    probabilities = torch.tensor(
        [
            [[0.0, 0.0, 0.0, 0.0, 0.9, 0.9, 0.0]],  # not used
            [[0.7, 0.3, 0.8, 0.95, 0.05, 0.05, 0.85]],
            [[0.3, 0.7, 0.0, 0.05, 0.05, 0.05, 0.15]],
        ],
        dtype=torch.float64,
    )[None]
    probabilities[0, 1, 0, 2] = 1 - torch.tensor(51, dtype=torch.float64) / 255
    present = torch.tensor([[4, 11]])

    def label(**changes):
        config = CONFIG.model_copy(update={"salient_level": 52} | changes)
        return (
            attention_to_pseudo_label(probabilities, present, saliency, config).flatten().tolist()
        )

    # The tie is background; 255 * 0.9 = 229.5, so a background of saliency 26 scores 0.898.
    assert label(overruled_score=0.81) == [5, 12, 0, 255, 0, 0, 255]
    # A score equal to a threshold does not exceed it.
    assert label(overruled_score=0.85) == [5, 12, 0, 255, 0, 0, 0]
    assert label(overruled_score=0.96) == [5, 12, 0, 255, 0, 0, 0]
    assert label(overruled_score=0.96, conflict_score=0.95) == [5, 12, 0, 0, 0, 0, 0]
    assert label(overruled_score=0.96, conflict_score=0.84) == [5, 12, 0, 255, 0, 0, 255]
    assert label(overruled_score=0.96, salient_level=32) == [5, 12, 255, 255, 255, 0, 0]


def test_foreground_is_counted_after_the_other_rules_and_image_by_image():
    # 100 pixels, of which 1, 2 and none are certain; one more of the second image is in conflict.
    probabilities = torch.zeros(3, 2, 10, 10)
    probabilities[:2, 1, 0, 0] = probabilities[1, 1, 0, 1] = 0.6
    probabilities[1, 1, 5, 5] = 0.95
    saliency = torch.zeros(3, 10, 10, dtype=torch.uint8)
    saliency[:2, 0, :2] = 255
    saliency[1, 5, 5] = 15  # background 0.94
    saliency[0, 0, 1] = 0
    present = torch.tensor([[0], [1], [2]])

    def foreground(share):
        config = CONFIG.model_copy(update={"min_foreground": share})
        label = attention_to_pseudo_label(probabilities, present, saliency, config)
        void = (label == 255).flatten(1).sum(1).tolist()
        return void, label[:, 0, 0].tolist()

    assert foreground(0.01) == ([0, 1, 100], [1, 2, 255])
    assert foreground(0.015) == ([100, 1, 100], [255, 2, 255])
    assert foreground(0.025) == ([100, 100, 100], [255, 255, 255])
    assert foreground(0.0) == ([0, 1, 0], [1, 2, 0])


@given(st.integers(0, 2**31))
def test_without_saliency_the_label_is_the_largest_probability(seed):
    generator = torch.Generator().manual_seed(seed)
    probabilities = (9 * torch.randn(2, 4, 5, 6, generator=generator)).softmax(1)
    present = torch.tensor([[0, 3, 8], [1, 2, 19]])
    label = attention_to_pseudo_label(probabilities, present, None, CONFIG)
    ids = torch.cat([torch.zeros_like(present[:, :1]), present + 1], 1)
    for image, number in enumerate(probabilities.argmax(1)):
        expected = ids[image][number]
        assert torch.equal(label[image], expected if (expected > 0).any() else expected * 0 + 255)


def test_without_saliency_low_thresholds_still_act():
    probabilities = torch.tensor([[[[0.5, 0.2, 0.7]], [[0.4, 0.8, 0.2]], [[0.1, 0.0, 0.1]]]])
    present = torch.tensor([[4, 11]])

    def label(**changes):
        config = CONFIG.model_copy(update=changes)
        return attention_to_pseudo_label(probabilities, present, None, config).flatten().tolist()

    assert label() == [0, 5, 0]
    assert label(conflict_score=0.3) == [255, 5, 0]
    assert label(overruled_score=0.15) == [255, 5, 255]
    assert label(salient_level=0) == [0, 5, 0]


def test_classes_and_saliency_that_do_not_fit_are_refused():
    probabilities = torch.rand(1, 3, 4, 5)
    with pytest.raises(ValueError, match=r"2 classes for each of 1 images.*got \(1, 3\)"):
        attention_to_pseudo_label(probabilities, torch.tensor([[0, 1, 2]]), None, CONFIG)
    saliency = torch.zeros(1, 8, 10, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"4 x 5 pixels, got \(1, 8, 10\); resize it"):
        attention_to_pseudo_label(probabilities, torch.tensor([[0, 1]]), saliency, CONFIG)
