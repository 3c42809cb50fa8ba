"""Every statistic by hand and against a second implementation; error rates are in
test_error_rates.py.
"""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from sweeps.core.statistics.paired import (
    detectable_effect,
    holm,
    noise_floor,
    not_distinguishable,
    paired,
    paired_power,
    seeds_needed,
    summarise,
)

# --- rows ---


def test_summary_by_hand():
    summary = summarise([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.302653, from a printed table.
    assert (summary.n, summary.mean, summary.sd) == (3, 2.0, 1.0)
    assert summary.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert summary.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 3, 10, 200])
def test_summary_as_scipy(n, confidence):
    values = np.random.default_rng(n).normal(0.6, 0.01, n)
    summary = summarise(values, confidence)
    assert (summary.low, summary.high) == pytest.approx(
        stats.t.interval(confidence, n - 1, values.mean(), stats.sem(values)), rel=1e-12
    )


def test_summary_of_little():
    assert summarise([]) is None
    assert (summarise([0.5]).sd, summarise([0.5]).low, summarise([0.5]).high) == (None, None, None)
    # 0.1 + 0.2 is 0.3 up to rounding, which is no spread.
    same = summarise([0.3, 0.1 + 0.2])
    assert (same.sd, same.low, same.high) == (0.0, None, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_have_to_be_finite(bad):
    with pytest.raises(ValueError, match="Expected finite values"):
        summarise([0.5, bad])
    with pytest.raises(ValueError, match="Leave out trials"):
        paired({0: bad}, {0: 0.5})


def test_paired_by_hand():
    result = paired({0: 3.0, 1: 5.0, 2: 7.0, 9: 100.0}, {0: 2.0, 1: 3.0, 2: 4.0, 8: -100.0})
    # Differences 1, 2, 3: mean 2, sd 1, t = 2 sqrt(3), and for two degrees of freedom p = 1 - t /
    # sqrt(2 + t^2).
    assert (result.n, result.difference, result.sd) == (3, 2.0, 1.0)
    assert result.p == pytest.approx(1 - math.sqrt(12 / 14))
    assert result.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    # Hedges' exact correction for two degrees of freedom: Gamma(1) / Gamma(1/2) = 1 / sqrt(pi).
    assert result.effect_size == pytest.approx(2 / math.sqrt(math.pi))


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_paired_as_scipy(n):
    generator = np.random.default_rng(n)
    row, base = generator.normal(0.62, 0.01, n), generator.normal(0.6, 0.01, n)
    ours, theirs = paired(dict(enumerate(row)), dict(enumerate(base))), stats.ttest_rel(row, base)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval()), rel=1e-9)
    back = paired(dict(enumerate(base)), dict(enumerate(row)))
    assert (back.difference, back.p) == pytest.approx((-ours.difference, ours.p))


def test_the_effect_size_is_unbiased():
    generator = np.random.default_rng(0)
    zero = dict.fromkeys(range(5), 0.0)
    sizes = [
        paired(dict(enumerate(values)), zero).effect_size
        for values in generator.normal(0.8, 1, (4000, 5))
    ]
    # Without the correction the mean is 0.8 / 0.798 = 1.0.
    assert np.mean(sizes) == pytest.approx(0.8, abs=3.5 * np.std(sizes) / math.sqrt(len(sizes)))
    assert paired({0: 1.0, 1: 2.0}, {0: 0.0, 1: 0.0}).effect_size is None


def test_pairs_without_spread_are_no_certainty():
    base = {0: 0.1, 1: 0.2, 2: 0.7}
    nothing = paired(base, base)
    assert (nothing.difference, nothing.sd, nothing.p, nothing.low, nothing.effect_size) == (
        0.0,
        0.0,
        1.0,
        None,
        None,
    )
    shifted = {seed: value + 0.1 for seed, value in base.items()}
    result = paired(shifted, base)
    flips = [abs(np.dot(signs, [1, 1, 1])) >= 3 for signs in itertools.product((-1, 1), repeat=3)]
    assert result.p == np.mean(flips) == 0.25
    assert (result.sd, result.low, result.high) == (0.0, None, None)


def test_one_pair_and_none():
    assert paired({0: 1.0}, {1: 1.0}) is None
    one = paired({0: 1.5, 3: 9.0}, {0: 1.0})
    assert (one.n, one.difference, one.sd, one.p, one.low) == (1, 0.5, None, None, None)


def test_holm_by_hand():
    # Four declared comparisons, one of them not there yet: 0.01 * 4, 0.03 * 3, then 0.04 * 2 raised
    # to 0.09.
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.04, 0.09, None, 0.09])
    assert holm([]) == []
    assert holm([None]) == [None]
    assert holm([0.7, 0.6]) == [1.0, 1.0]


def test_holm_as_statsmodels():
    generator = np.random.default_rng(0)
    for size in (1, 2, 9, 40):
        p = np.round(generator.uniform(0, 0.2, size), 2)  # rounding makes ties
        assert holm(p.tolist()) == pytest.approx(
            multipletests(p, method="holm")[1].tolist(), rel=1e-12
        )


# --- power ---


def test_detectable_effects_of_nine_comparisons():
    found = [detectable_effect(n, 9, 0.05, 0.8) for n in (1, 3, 5, 10)]
    assert found == pytest.approx([math.inf, 9.82, 3.07, 1.46], abs=0.005)


@pytest.mark.parametrize(("n", "comparisons"), [(2, 1), (3, 9), (5, 9), (10, 50), (40, 1)])
def test_power_as_simulated(n, comparisons):
    effect, studies = detectable_effect(n, comparisons, 0.05, 0.8), 100_000
    differences = np.random.default_rng(n).normal(effect, 1, (studies, n))
    t = differences.mean(1) / differences.std(1, ddof=1) * math.sqrt(n)
    found = np.mean(2 * stats.t.sf(np.abs(t), n - 1) <= 0.05 / comparisons)
    assert found == pytest.approx(0.8, abs=3.5 * math.sqrt(0.8 * 0.2 / studies))


@pytest.mark.parametrize("effect", [0.1, 0.5, 1.2])
def test_power_as_statsmodels_where_it_is_accurate(effect):
    for n, comparisons in ((10, 1), (20, 3), (100, 9)):
        expected = TTestPower().power(effect, n, 0.05 / comparisons)
        assert paired_power(effect, n, comparisons, 0.05) == pytest.approx(expected, rel=1e-6)


def test_power_without_an_effect_is_the_significance():
    for n in (2, 3, 10, 1000):
        assert paired_power(0.0, n, 9, 0.05) == pytest.approx(0.05 / 9, rel=1e-6)
    assert paired_power(5.0, 1, 9, 0.05) == 0.0
    assert paired_power(-1.3, 6, 2, 0.05) == pytest.approx(paired_power(1.3, 6, 2, 0.05))


@pytest.mark.parametrize(("effect", "sd"), [(0.005, 0.005), (-0.005, 0.02), (0.5, 0.01)])
def test_seeds_needed_is_the_smallest_number(effect, sd):
    n = seeds_needed(effect, sd, 9, 0.05, 0.8)
    assert (
        detectable_effect(n, 9, 0.05, 0.8)
        <= abs(effect) / sd
        < detectable_effect(n - 1, 9, 0.05, 0.8)
    )


def test_seeds_needed_at_the_ends():
    assert seeds_needed(0.005, 0.0, 9, 0.05, 0.8) == 2
    # Of many seeds the t test is a z test: n = ((z of 1 - 0.05 / 18) + (z of 0.8))^2 (sd /
    # effect)^2.
    z = stats.norm.isf(0.05 / 18) + stats.norm.isf(0.2)
    assert seeds_needed(0.005, 0.5, 9, 0.05, 0.8) == pytest.approx(z**2 * 100**2, rel=1e-3)
    with pytest.raises(ValueError, match="effect other than 0"):
        seeds_needed(0.0, 1.0, 9, 0.05, 0.8)


def test_plans_that_make_no_sense():
    with pytest.raises(ValueError, match="at least one comparison"):
        detectable_effect(3, 0, 0.05, 0.8)
    with pytest.raises(ValueError, match="power between the significance"):
        detectable_effect(3, 1, 0.05, 0.01)


# --- columns ---


def column(**means):
    noise = (-0.001, 0.002, 0.0, -0.002, 0.001)
    return {
        label: {seed: mean + noise[(seed * (place + 1)) % 5] for seed in range(5)}
        for place, (label, mean) in enumerate(means.items())
    }


def test_bold_is_the_best_and_what_is_not_distinguishable():
    values = column(a=0.60, b=0.601, c=0.50)
    assert not_distinguishable(values, True, 0.05) == {"a", "b"}
    assert not_distinguishable(values, False, 0.05) == {"c"}


def test_bold_is_corrected_for_the_other_rows_and_one_sided():
    base, noise = dict.fromkeys(range(5), 0.0), [1.0, -1.0, 2.0, -2.0, 0.5]
    rows = {"best": base} | {
        f"row {k}": {seed: k / 10 - 2.2 + noise[seed] for seed in base} for k in (1, 2, 3, 4)
    }
    worst_first = sorted(
        stats.ttest_rel([*values.values()], [*base.values()], alternative="less").pvalue
        for label, values in rows.items()
        if label != "best"
    )
    assert 0.05 / 4 < worst_first[0] < worst_first[-1] < 0.05
    assert not_distinguishable(rows, True, 0.05) == set(rows)
    level = worst_first[1] * 4
    assert not_distinguishable(rows, True, level * 1.001) == {"best", "row 3", "row 4"}
    assert not_distinguishable(rows, True, level * 0.999) == {"best", "row 2", "row 3", "row 4"}


def test_bold_of_a_row_that_is_ahead_where_both_have_values():
    values = {"mean": {0: 0.5, 1: 0.51, 2: 0.5, 3: 0.9}, "ahead": {0: 0.55, 1: 0.56, 2: 0.5501}}
    assert not_distinguishable(values, True, 0.05) == {"mean", "ahead"}


def test_bold_of_rows_with_few_values():
    assert not_distinguishable({}, True, 0.05) == set()
    values = {
        "many": {0: 0.6, 1: 0.61, 2: 0.605},
        "one": {0: 0.1},
        "none": {},
        "other seeds": {7: 0.3, 8: 0.31},
    }
    assert not_distinguishable(values, True, 0.05) == {"many", "one", "other seeds"}


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (10, 10), (3, 5)])
def test_noise_floor_as_scipy(sizes):
    generator = np.random.default_rng(0)
    first, second = (generator.normal(0.6, 0.01, size) for size in sizes)
    low, high = stats.ttest_ind(first, second).confidence_interval()
    assert noise_floor(first, second) == pytest.approx((high - low) / 2, rel=1e-9)


def test_noise_floor_by_hand_and_of_little():
    # Variances 1 and 1, t(0.975, 4) = 2.776445.
    assert noise_floor([1, 2, 3], [5, 6, 7]) == pytest.approx(2.776445 * math.sqrt(2 / 3), abs=1e-6)
    assert noise_floor([1, 2, 3], [5]) is None
