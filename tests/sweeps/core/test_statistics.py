"""Every statistic by hand and against a second implementation; error rates are in test_error_rates.py."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from sweeps.core import statistics
from sweeps.core.statistics import (
    anova,
    class_image_intervals,
    detectable_effect,
    holm,
    image_interval,
    noise_floor,
    not_distinguishable,
    paired,
    paired_power,
    resampled_iou,
    seeds_needed,
    summarise,
    two_level_effects,
)
from toco.metrics.segmentation import class_scores, mean_over_classes

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
    # Differences 1, 2, 3: mean 2, sd 1, t = 2 sqrt(3), and for two degrees of freedom p = 1 - t / sqrt(2 + t^2).
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
    sizes = [paired(dict(enumerate(values)), zero).effect_size for values in generator.normal(0.8, 1, (4000, 5))]
    # Without the correction the mean is 0.8 / 0.798 = 1.0.
    assert np.mean(sizes) == pytest.approx(0.8, abs=3.5 * np.std(sizes) / math.sqrt(len(sizes)))
    assert paired({0: 1.0, 1: 2.0}, {0: 0.0, 1: 0.0}).effect_size is None


def test_pairs_without_spread_are_no_certainty():
    base = {0: 0.1, 1: 0.2, 2: 0.7}
    nothing = paired(base, base)
    assert (nothing.difference, nothing.sd, nothing.p, nothing.low, nothing.effect_size) == (0.0, 0.0, 1.0, None, None)
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
    # Four declared comparisons, one of them not there yet: 0.01 * 4, 0.03 * 3, then 0.04 * 2 raised to 0.09.
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.04, 0.09, None, 0.09])
    assert holm([]) == []
    assert holm([None]) == [None]
    assert holm([0.7, 0.6]) == [1.0, 1.0]


def test_holm_as_statsmodels():
    generator = np.random.default_rng(0)
    for size in (1, 2, 9, 40):
        p = np.round(generator.uniform(0, 0.2, size), 2)  # rounding makes ties
        assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1].tolist(), rel=1e-12)


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
    assert detectable_effect(n, 9, 0.05, 0.8) <= abs(effect) / sd < detectable_effect(n - 1, 9, 0.05, 0.8)


def test_seeds_needed_at_the_ends():
    assert seeds_needed(0.005, 0.0, 9, 0.05, 0.8) == 2
    # Of many seeds the t test is a z test: n = ((z of 1 - 0.05 / 18) + (z of 0.8))^2 (sd / effect)^2.
    z = stats.norm.isf(0.05 / 18) + stats.norm.isf(0.2)
    assert seeds_needed(0.005, 0.5, 9, 0.05, 0.8) == pytest.approx(z**2 * 100**2, rel=1e-3)
    with pytest.raises(ValueError, match="effect other than 0"):
        seeds_needed(0.0, 1.0, 9, 0.05, 0.8)


def test_plans_that_make_no_sense():
    with pytest.raises(ValueError, match="at least one comparison"):
        detectable_effect(3, 0, 0.05, 0.8)
    with pytest.raises(ValueError, match="power between the significance"):
        detectable_effect(3, 1, 0.05, 0.01)


# --- images ---


def random_confusions(seeds, images, classes, quality, entropy=0):
    """Images of background and one class each; ``quality`` is the share of right pixels."""
    generator = np.random.default_rng([entropy, int(1000 * quality)])
    shown = np.random.default_rng(entropy).integers(1, classes, images)
    confusions = np.zeros((seeds, images, classes, classes), np.int32)
    for seed, image in itertools.product(range(seeds), range(images)):
        for true, other in ((0, shown[image]), (shown[image], 0)):
            right = generator.binomial(500, np.clip(generator.normal(quality, 0.1), 0, 1))
            confusions[seed, image, true, true], confusions[seed, image, true, other] = right, 500 - right
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
        float(mean_over_classes(class_scores(torch.from_numpy(confusions[0].sum(0))).iou)) for confusions in (row, base)
    ]
    assert image_interval(row, base, 10).difference == pytest.approx(mious[0] - mious[1], rel=1e-12)
    per_class = class_image_intervals(row, base, 10)
    assert per_class[4] is None
    assert np.mean([interval.difference for interval in per_class[:4]]) == pytest.approx(mious[0] - mious[1])


def test_the_bootstrap_draws_images_in_pairs():
    """Against a loop that draws indices of images; both have their Monte Carlo error."""
    row, base = random_confusions(3, 40, 3, 0.75), random_confusions(3, 40, 3, 0.7)
    generator = np.random.default_rng(5)
    draws = []
    for _ in range(4000):
        chosen = generator.integers(0, 40, 40)
        mious = [
            mean_over_classes(class_scores(torch.from_numpy(confusions[:, chosen].sum(1))).iou).mean().item()
            for confusions in (row, base)
        ]
        draws.append(mious[0] - mious[1])
    interval = image_interval(row, base, 4000)
    width = interval.high - interval.low
    assert [interval.low, interval.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]).tolist(), abs=0.05 * width)
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
    monkeypatch.setattr(statistics, "CHUNK", 7)
    np.testing.assert_array_equal(resampled_iou(confusions, 40, seed=3), at_once)
    assert not np.array_equal(resampled_iou(confusions, 40, seed=4)[:, 1:], at_once[:, 1:], equal_nan=True)


def test_confusions_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="same seeds, images and classes"):
        image_interval(random_confusions(2, 9, 3, 0.6), random_confusions(1, 9, 3, 0.6))
    with pytest.raises(ValueError, match=r"\[seeds, images, classes, classes\]"):
        resampled_iou(np.zeros((0, 9, 3, 3), np.int32))
    empty = np.zeros((1, 4, 3, 3), np.int32)
    with pytest.raises(ValueError, match="No image has a ground truth pixel"):
        image_interval(empty, empty, 5)


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
    rows = {"best": base} | {f"row {k}": {seed: k / 10 - 2.2 + noise[seed] for seed in base} for k in (1, 2, 3, 4)}
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
    values = {"many": {0: 0.6, 1: 0.61, 2: 0.605}, "one": {0: 0.1}, "none": {}, "other seeds": {7: 0.3, 8: 0.31}}
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


# --- factors ---


def observations(values, *factors):
    """A row for every combination of the levels and every seed, in order."""
    names = [name for name, _ in factors]
    runs = list(itertools.product(*(levels for _, levels in factors)))
    rows = [(*run, seed, values[index][seed]) for index, run in enumerate(runs) for seed in range(len(values[index]))]
    return pd.DataFrame(rows, columns=[*names, "seed", "value"])


def random_table(levels=(3, 4), seeds=3):
    values = np.random.default_rng(1).normal(size=(math.prod(levels), seeds))
    return observations(values, *((f"method.f{index}", range(count)) for index, count in enumerate(levels)))


def residual(table, formula_terms):
    """Sum of squares that dummy variables of the terms do not explain: a second implementation, by least squares."""
    columns = [np.ones(len(table))]
    for term in formula_terms:
        groups = table.groupby(list(term), sort=False).ngroup().to_numpy()
        columns += [(groups == group).astype(float) for group in np.unique(groups)]
    design = np.stack(columns, 1)
    left = table["value"].to_numpy() - design @ np.linalg.lstsq(design, table["value"].to_numpy(), rcond=None)[0]
    return float(left @ left), len(table) - np.linalg.matrix_rank(design)


@pytest.mark.parametrize("drop", [[], [0, 17]], ids=["balanced", "two trials missing"])
def test_anova_as_differences_of_least_squares(drop):
    table = random_table().drop(index=drop)
    a, b, ab, seed = ("method.f0",), ("method.f1",), ("method.f0", "method.f1"), ("seed",)
    full, df = residual(table, [seed, a, b, ab])
    # Type II: each term beyond those that do not contain it.
    without = {seed: ([a, b, ab], full), ab: ([seed, a, b], full)}
    main = residual(table, [seed, a, b])[0]
    without |= {a: ([seed, b], main), b: ([seed, a], main)}
    result = anova(table)
    assert (result.residual_df, result.notes) == (df, ())
    assert [term.factors for term in result.terms] == [seed, a, b, ab]
    assert [term.df for term in result.terms] == [2, 2, 3, 6]
    for term in result.terms:
        terms, reference = without[term.factors]
        explained = residual(table, terms)[0] - reference
        f = explained / term.df / (full / df)
        assert (term.sum_squares, term.f) == pytest.approx((explained, f), rel=1e-8)
        assert term.p == pytest.approx(stats.f.sf(f, term.df, df), rel=1e-8)
        assert term.partial_eta_squared == pytest.approx(explained / (explained + full), rel=1e-8)


def test_anova_of_two_rows_is_the_paired_t_test():
    table = random_table((2,), 6)
    by_level = [group.set_index("seed")["value"].to_dict() for _, group in table.groupby("method.f0")]
    assert anova(table).terms[1].p == pytest.approx(paired(*by_level).p, rel=1e-9)


def test_an_interaction_is_warned_of():
    noise = np.random.default_rng(0).normal(0, 0.1, (4, 3))
    crossed = observations(noise + np.array([[0], [0], [0], [5]]), ("low", (0.2, 0.3)), ("high", (0.6, 0.7)))
    (warning,) = anova(crossed).dependencies(0.05)
    assert warning.startswith("The effect of low depends on high (interaction: F(1, 6) = ")
    added = observations(noise + np.array([[0], [5], [5], [10]]), ("low", (0.2, 0.3)), ("high", (0.6, 0.7)))
    assert anova(added).dependencies(0.05) == ()
    assert anova(added).interactions[0].p > 0.05


def test_one_seed_leaves_interactions_for_the_noise():
    result = anova(random_table((3, 4), 1))
    assert [(term.name, term.df) for term in result.terms] == [("method.f0", 2), ("method.f1", 3)]
    assert result.residual_df == 6
    assert "without a second seed" in result.notes[0]
    alone = anova(random_table((3,), 1))
    assert (alone.terms, alone.residual_df) == ((), 0)
    assert "nothing can be tested" in alone.notes[0]
    assert alone.dependencies(0.05) == ()


def test_values_that_no_seed_moves_cannot_be_tested():
    result = anova(observations([[0.1, 0.1], [0.3, 0.1 + 0.2]], ("a", (0, 1))))
    assert result.terms == ()
    assert "Add seeds" in result.notes[0]


def test_anova_says_what_a_fraction_cannot_tell():
    runs = [(a, b, a * b) for a, b in itertools.product((-1, 1), repeat=2)]
    rows = [(*run, seed, 10 * run[0] + seed + 0.1 * run[1] * seed) for run in runs for seed in range(3)]
    result = anova(pd.DataFrame(rows, columns=["A", "B", "C", "seed", "value"]))
    assert [term.name for term in result.terms] == ["seed", "A", "B", "C"]
    assert result.notes == tuple(
        f"{pair} is left out: these rows cannot tell it from other terms." for pair in ("A x B", "A x C", "B x C")
    )
    assert result.terms[1].p < 1e-6


def test_levels_of_several_types_are_levels():
    table = observations([[1.0, 1.1], [2.0, 2.2], [3.0, 3.1]], ("evaluate.crf", (None, True, "fast")))
    assert [(term.name, term.df) for term in anova(table).terms] == [("seed", 1), ("evaluate.crf", 2)]


def test_tables_that_cannot_be_analysed():
    with pytest.raises(ValueError, match=r"lacks the columns \['seed'\]"):
        anova(pd.DataFrame({"value": [1.0], "a": [1]}))
    with pytest.raises(ValueError, match="No factor has two levels"):
        anova(random_table((1,)))


def test_effects_of_a_full_design_by_hand():
    # In seed 0 the effect of A is 2 where B is off and 6 where it is on; in seed 1 all of it is doubled.
    table = observations([[0, 0], [1, 2], [2, 4], [7, 14]], ("A", ("off", "on")), ("B", ("off", "on")))
    effects = {effect.name: effect for effect in two_level_effects(table)}
    assert list(effects) == ["A", "B", "A x B"]
    assert [effect.estimate.difference for effect in effects.values()] == [1.5 * 4, 1.5 * 3, 1.5 * 2]
    assert effects["A"].levels == (("off", "on"),)
    assert effects["A x B"].levels == (("off", "on"), ("off", "on"))
    assert all(effect.aliases == () for effect in effects.values())
    assert effects["A"].estimate.p == pytest.approx(stats.ttest_1samp([4, 8], 0).pvalue)


def half_fraction(seeds=2):
    """Four factors in eight rows, D = ABC, with effects of A and of the interaction of A and B alone."""
    runs = [(a, b, c, a * b * c) for a, b, c in itertools.product((-1, 1), repeat=3)]
    rows = [(*run, seed, 3.0 * run[0] + 2.0 * run[0] * run[1] + seed) for run in runs for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["A", "B", "C", "D", "seed", "value"])


def test_effects_of_a_fraction_and_their_aliases():
    effects = {effect.name: effect for effect in two_level_effects(half_fraction())}
    found = {name: effect.estimate.difference for name, effect in effects.items()}
    # A from 3 at -1 to 3 at +1 is 6; C x D is A x B under another name.
    assert {name: value for name, value in found.items() if value} == {"A": 6.0, "A x B": 4.0, "C x D": 4.0}
    assert effects["A"].aliases == ()
    assert effects["A x B"].aliases == (("C", "D"),)
    assert effects["B x C"].aliases == (("A", "D"),)
    assert len(effects) == 10


def test_rows_that_are_no_fraction_tell_little_apart():
    # One factor at a time: the columns of the two factors are correlated.
    rows = [(*run, 0, value) for run, value in (((0, 0), 1.0), ((1, 0), 2.0), ((0, 1), 3.0))]
    effects = two_level_effects(pd.DataFrame(rows, columns=["A", "B", "seed", "value"]))
    assert [(effect.name, effect.aliases) for effect in effects[:2]] == [
        ("A", (("B",), ("A", "B"))),
        ("B", (("A",), ("A", "B"))),
    ]
    # The signs of A and B have the product sum 0, yet where A is high B is high, and where A is low it is not always.
    runs = [(0, 1, 0), (0, 1, 1), (0, 0, 0), (1, 1, 0)]
    unbalanced = pd.DataFrame([(*run, 0, 1.0) for run in runs], columns=["A", "B", "C", "seed", "value"])
    assert ("B",) in two_level_effects(unbalanced)[0].aliases


def test_seeds_that_lack_a_row_do_not_count():
    table = half_fraction(3)
    lacking = table.drop(index=[2])  # the first row of the design, seed 2
    assert two_level_effects(lacking)[0].estimate.n == 2
    with pytest.raises(ValueError, match="No seed has all 8 rows"):
        two_level_effects(table.drop(index=[0, 4, 8]))
    with pytest.raises(ValueError, match="two values for one combination"):
        two_level_effects(pd.concat([table, table.iloc[:1]]))
    with pytest.raises(ValueError, match=r"method.f1 has 3"):
        two_level_effects(random_table((2, 3)))


def test_an_interaction_that_may_be_another_one_is_not_said_to_be_the_first():
    """D = ABC, so AB = CD in these rows; what acts is C x D alone."""
    generator = np.random.default_rng(0)
    lines = []
    for a, b, c, seed in itertools.product((0, 1), (0, 1), (0, 1), range(4)):
        d = (a + b + c) % 2
        value = 0.5 + 0.05 * (c == d) + generator.normal(0, 0.003)
        lines.append({"value": value, "seed": seed, "A": a, "B": b, "C": c, "D": d})
    found = anova(pd.DataFrame(lines))
    assert {term.factors: term.aliases for term in found.interactions} == {
        ("A", "B"): (("C", "D"),),
        ("A", "C"): (("B", "D"),),
        ("A", "D"): (("B", "C"),),
    }
    (warning,) = found.dependencies(0.05)
    assert warning.startswith("The effect of A depends on B, or that of C on D: these rows cannot tell which (")
