"""The bootstrap over images against loops that draw them, and against the metric itself."""

import itertools

import numpy as np
import pytest
import torch

from sweeps.core.statistics import image_noise
from sweeps.core.statistics.image_noise import (
    class_difference_intervals,
    difference_interval,
    resampled_iou,
)
from toco.metrics.segmentation import class_scores, mean_over_classes


def image_interval(row, base, resamples):
    return difference_interval(resampled_iou(row, resamples), resampled_iou(base, resamples))


def random_confusions(seeds, images, classes, quality, entropy=0):
    """Images of background and one class each; ``quality`` is the share of right pixels."""
    generator = np.random.default_rng([entropy, int(1000 * quality)])
    shown = np.random.default_rng(entropy).integers(1, classes, images)
    confusions = np.zeros((seeds, images, classes, classes), np.int32)
    for seed, image in itertools.product(range(seeds), range(images)):
        for true, other in ((0, shown[image]), (shown[image], 0)):
            right = generator.binomial(500, np.clip(generator.normal(quality, 0.1), 0, 1))
            confusions[seed, image, true, true], confusions[seed, image, true, other] = (
                right,
                500 - right,
            )
    return confusions


def test_the_images_themselves_come_first():
    confusions = random_confusions(2, 12, 4, 0.7)
    expected = class_scores(torch.from_numpy(confusions.sum(1, dtype=np.int64))).iou.numpy()
    np.testing.assert_allclose(resampled_iou(confusions, 50)[:, 0], expected, rtol=1e-12)


def test_absent_classes_are_left_out_as_in_the_metric():
    row, base = random_confusions(1, 12, 5, 0.8), random_confusions(1, 12, 5, 0.6)
    for confusions in (row, base):
        confusions[:, :, 4] = 0  # no ground truth of class 4; some predictions of it
    row[0, 0, 0, 4] = 50
    mious = [
        float(mean_over_classes(class_scores(torch.from_numpy(confusions[0].sum(0))).iou))
        for confusions in (row, base)
    ]
    assert image_interval(row, base, 10).difference == pytest.approx(mious[0] - mious[1], rel=1e-12)
    per_class = class_difference_intervals(resampled_iou(row, 10), resampled_iou(base, 10))
    assert per_class[4] is None
    assert np.mean([interval.difference for interval in per_class[:4]]) == pytest.approx(
        mious[0] - mious[1]
    )


def test_the_bootstrap_draws_images_in_pairs():
    """Against a loop that draws indices of images; both have their Monte Carlo error."""
    row, base = random_confusions(3, 40, 3, 0.75), random_confusions(3, 40, 3, 0.7)
    generator = np.random.default_rng(5)
    draws = []
    for _ in range(4000):
        chosen = generator.integers(0, 40, 40)
        mious = [
            mean_over_classes(class_scores(torch.from_numpy(confusions[:, chosen].sum(1))).iou)
            .mean()
            .item()
            for confusions in (row, base)
        ]
        draws.append(mious[0] - mious[1])
    interval = image_interval(row, base, 4000)
    width = interval.high - interval.low
    assert [interval.low, interval.high] == pytest.approx(
        np.quantile(draws, [0.025, 0.975]).tolist(), abs=0.05 * width
    )
    assert interval.low < interval.difference < interval.high
    # Other images for the base, so that the pairing is lost, give a wider interval.
    shuffled = base[:, np.random.default_rng(6).permutation(40)]
    assert image_interval(row, shuffled, 4000).difference == pytest.approx(interval.difference)
    same = image_interval(base, base, 500)
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
    apart = image_interval(base, shuffled, 500)
    assert apart.difference == pytest.approx(0.0)
    assert apart.high - apart.low > 0.005


def test_one_image_has_no_spread_and_seeds_are_averaged():
    row, base = random_confusions(2, 1, 3, 0.9), random_confusions(2, 1, 3, 0.5)
    interval = image_interval(row, base, 20)
    per_seed = [image_interval(row[[seed]], base[[seed]], 20).difference for seed in (0, 1)]
    assert interval.low == interval.high == interval.difference == pytest.approx(np.mean(per_seed))


def test_resamples_do_not_depend_on_how_many_are_counted_at_once(monkeypatch):
    confusions = random_confusions(2, 9, 3, 0.6)
    at_once = resampled_iou(confusions, 40, seed=3)
    monkeypatch.setattr(image_noise, "CHUNK", 7)
    np.testing.assert_array_equal(resampled_iou(confusions, 40, seed=3), at_once)
    assert not np.array_equal(
        resampled_iou(confusions, 40, seed=4)[:, 1:], at_once[:, 1:], equal_nan=True
    )


def test_confusions_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="same seeds, images and classes"):
        image_interval(random_confusions(2, 9, 3, 0.6), random_confusions(1, 9, 3, 0.6), 5)
    with pytest.raises(ValueError, match=r"\[seeds, images, classes, classes\]"):
        resampled_iou(np.zeros((0, 9, 3, 3), np.int32))
    empty = np.zeros((1, 4, 3, 3), np.int32)
    with pytest.raises(ValueError, match="No image has a ground truth pixel"):
        image_interval(empty, empty, 5)
