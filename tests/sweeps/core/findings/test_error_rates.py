"""How often the statistics of a study are wrong, by simulation: studies of which the truth is
known.

The bounds leave 2.6 standard errors of the simulation itself (one in a hundred); every simulation
has a fixed seed.
"""

import math

import numpy as np
import pytest

from sweeps.core.statistics.image_noise import difference_interval, resampled_iou
from sweeps.core.statistics.paired import holm, noise_floor, not_distinguishable, paired, summarise

STUDIES, ROWS, LEVEL = 2000, 10, 0.05


def bound(rate, studies):
    return rate + 2.6 * math.sqrt(rate * (1 - rate) / studies)


def null_studies(noise, n, rows, studies=STUDIES):
    """Values ``[studies, rows + 1, n]`` without any true difference; the last row is the base.

    A seed moves all rows of a study alike (half of the variance), which is what pairing takes out.
    """
    generator = np.random.default_rng([n, len(noise)])
    shape = (studies, rows + 1, n)
    shared = generator.normal(size=(studies, 1, n))
    if noise == "normal":
        own = generator.normal(size=shape)
    elif noise == "heavy tails":
        own = generator.standard_t(3, size=shape)
    elif noise == "unequal spread":
        own = generator.normal(size=shape) * np.linspace(0.3, 3.0, rows + 1)[:, None]
    else:  # metrics that take few values, so that differences repeat themselves
        return np.round(shared + generator.normal(size=shape))
    return 0.6 + 0.01 * (shared + own)


def by_seed(values):
    return dict(enumerate(values.tolist()))


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("noise", ["normal", "heavy tails", "unequal spread", "few values"])
def test_family_wise_error_of_null_studies(noise, n):
    false_alarms = uncorrected = 0
    for study in null_studies(noise, n, ROWS):
        base = by_seed(study[-1])
        p = [paired(by_seed(row), base).p for row in study[:-1]]
        false_alarms += any(corrected <= LEVEL for corrected in holm(p))
        uncorrected += any(value <= LEVEL for value in p)
    assert false_alarms / STUDIES <= bound(LEVEL, STUDIES)
    # The simulation can fail: without the correction about every fourth study would report an
    # effect.
    if noise == "normal":
        assert uncorrected / STUDIES > 0.2
        assert false_alarms / STUDIES > 0.01


@pytest.mark.parametrize("noise", ["normal", "unequal spread"])
@pytest.mark.parametrize("n", [3, 5, 10])
def test_a_row_that_is_as_good_as_the_best_is_bold(noise, n):
    left_out = 0
    for study in null_studies(noise, n, ROWS - 1):
        values = {f"row {index}": by_seed(row) for index, row in enumerate(study)}
        left_out += len(values) - len(not_distinguishable(values, True, LEVEL))
    assert left_out / (STUDIES * ROWS) <= bound(LEVEL, STUDIES)


def test_each_of_the_truly_best_rows_is_bold_beside_worse_ones():
    """Three rows tie, the others fall behind by growing steps: each of the tied is kept, most of
    the others are not.
    """
    lost = dict.fromkeys("012", 0)
    kept_worse = 0
    truth = np.array([0, 0, 0, 1, 2, 4, 8, 16, 32, 64]) * 0.01
    for study in null_studies("normal", 5, ROWS - 1):
        values = {str(index): by_seed(row - truth[index]) for index, row in enumerate(study)}
        bold = not_distinguishable(values, True, LEVEL)
        for label in lost.keys() - bold:
            lost[label] += 1
        kept_worse += bool(bold & {"8", "9"})
    assert max(lost.values()) / STUDIES <= bound(LEVEL, STUDIES)
    assert kept_worse / STUDIES < 0.01


@pytest.mark.parametrize("n", range(3, 11))
def test_intervals_cover_the_truth(n):
    studies, effect = 4000, 0.013
    summaries = differences = floors = 0
    for row, base in null_studies("normal", n, 1, studies):
        summary = summarise(row.tolist())
        summaries += summary.low <= 0.6 <= summary.high
        compared = paired(by_seed(row + effect), by_seed(base))
        differences += compared.low <= effect <= compared.high
    # The base again has other seeds, so nothing is shared.
    again = np.random.default_rng(n).normal(0.6, 0.01, (studies, 2, n))
    for first, second in again:
        floors += abs(first.mean() - second.mean()) <= noise_floor(first, second)
    for covered in (summaries, differences, floors):
        assert 0.93 <= covered / studies <= 0.97


def image_interval(row, base, resamples):
    return difference_interval(resampled_iou(row, resamples), resampled_iou(base, resamples))


def test_intervals_over_images_cover_what_other_images_would_give():
    """Two fixed networks on many draws of 60 test images; the truth is their difference over all
    images there are.
    """
    generator = np.random.default_rng(0)
    population, drawn, studies = 20_000, 60, 1000
    hard = generator.beta(4, 2, (1, population, 1))  # a hard image is hard for both
    right = generator.binomial(
        400, np.clip(hard + generator.normal([[[0.03]], [[0.0]]], 0.05, (2, population, 2)), 0, 1)
    )
    confusions = np.stack([right, 400 - right], axis=-1)
    confusions[:, :, 1] = confusions[
        :, :, 1, ::-1
    ]  # rows are ground truth: wrong pixels of class 1 are class 0
    row, base = confusions[:, None].astype(np.int32)
    truth = image_interval(row, base, 1).difference
    covered = 0
    for _ in range(studies):
        images = generator.choice(population, drawn, replace=False)
        interval = image_interval(row[:, images], base[:, images], 400)
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / studies <= 0.97
