"""Analyses of variance and effects against differences of least squares, by hand, and against t
tests.
"""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sweeps.core.statistics.anova import anova, two_level_effects
from sweeps.core.statistics.paired import (
    paired,
)


def observations(values, *factors):
    """A row for every combination of the levels and every seed, in order."""
    names = [name for name, _ in factors]
    runs = list(itertools.product(*(levels for _, levels in factors)))
    rows = [
        (*run, seed, values[index][seed])
        for index, run in enumerate(runs)
        for seed in range(len(values[index]))
    ]
    return pd.DataFrame(rows, columns=[*names, "seed", "value"])


def random_table(levels=(3, 4), seeds=3):
    values = np.random.default_rng(1).normal(size=(math.prod(levels), seeds))
    return observations(
        values, *((f"method.f{index}", range(count)) for index, count in enumerate(levels))
    )


def residual(table, formula_terms):
    """Sum of squares that dummy variables of the terms do not explain: a second implementation, by
    least squares.
    """
    columns = [np.ones(len(table))]
    for term in formula_terms:
        groups = table.groupby(list(term), sort=False).ngroup().to_numpy()
        columns += [(groups == group).astype(float) for group in np.unique(groups)]
    design = np.stack(columns, 1)
    left = (
        table["value"].to_numpy()
        - design @ np.linalg.lstsq(design, table["value"].to_numpy(), rcond=None)[0]
    )
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
        assert term.f == pytest.approx(f, rel=1e-8)
        assert term.p == pytest.approx(stats.f.sf(f, term.df, df), rel=1e-8)
        assert term.partial_eta_squared == pytest.approx(explained / (explained + full), rel=1e-8)


def test_anova_of_two_rows_is_the_paired_t_test():
    table = random_table((2,), 6)
    by_level = [
        group.set_index("seed")["value"].to_dict() for _, group in table.groupby("method.f0")
    ]
    assert anova(table).terms[1].p == pytest.approx(paired(*by_level).p, rel=1e-9)


def test_an_interaction_is_warned_of():
    noise = np.random.default_rng(0).normal(0, 0.1, (4, 3))
    crossed = observations(
        noise + np.array([[0], [0], [0], [5]]), ("low", (0.2, 0.3)), ("high", (0.6, 0.7))
    )
    (warning,) = anova(crossed).dependencies(0.05)
    assert warning.startswith("The effect of low depends on high (interaction: F(1, 6) = ")
    added = observations(
        noise + np.array([[0], [5], [5], [10]]), ("low", (0.2, 0.3)), ("high", (0.6, 0.7))
    )
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
    rows = [
        (*run, seed, 10 * run[0] + seed + 0.1 * run[1] * seed) for run in runs for seed in range(3)
    ]
    result = anova(pd.DataFrame(rows, columns=["A", "B", "C", "seed", "value"]))
    assert [term.name for term in result.terms] == ["seed", "A", "B", "C"]
    assert result.notes == tuple(
        f"{pair} is left out: these rows do not distinguish it from other terms."
        for pair in ("A x B", "A x C", "B x C")
    )
    assert result.terms[1].p < 1e-6


def test_levels_of_several_types_are_levels():
    table = observations(
        [[1.0, 1.1], [2.0, 2.2], [3.0, 3.1]], ("evaluate.crf", (None, True, "fast"))
    )
    assert [(term.name, term.df) for term in anova(table).terms] == [
        ("seed", 1),
        ("evaluate.crf", 2),
    ]


def test_tables_that_cannot_be_analysed():
    with pytest.raises(ValueError, match=r"lacks the columns \['seed'\]"):
        anova(pd.DataFrame({"value": [1.0], "a": [1]}))
    with pytest.raises(ValueError, match="No factor has two levels"):
        anova(random_table((1,)))


def test_effects_of_a_full_design_by_hand():
    # In seed 0 the effect of A is 2 where B is off and 6 where it is on; in seed 1 all of it is
    # doubled.
    table = observations(
        [[0, 0], [1, 2], [2, 4], [7, 14]], ("A", ("off", "on")), ("B", ("off", "on"))
    )
    effects = {" x ".join(effect.factors): effect for effect in two_level_effects(table)}
    assert list(effects) == ["A", "B", "A x B"]
    assert [effect.estimate.difference for effect in effects.values()] == [
        1.5 * 4,
        1.5 * 3,
        1.5 * 2,
    ]
    assert effects["A"].levels == (("off", "on"),)
    assert effects["A x B"].levels == (("off", "on"), ("off", "on"))
    assert all(effect.aliases == () for effect in effects.values())
    assert effects["A"].estimate.p == pytest.approx(stats.ttest_1samp([4, 8], 0).pvalue)


def half_fraction(seeds=2):
    """Four factors in eight rows, D = ABC, with effects of A and of the interaction of A and B
    alone.
    """
    runs = [(a, b, c, a * b * c) for a, b, c in itertools.product((-1, 1), repeat=3)]
    rows = [
        (*run, seed, 3.0 * run[0] + 2.0 * run[0] * run[1] + seed)
        for run in runs
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["A", "B", "C", "D", "seed", "value"])


def test_effects_of_a_fraction_and_their_aliases():
    effects = {" x ".join(effect.factors): effect for effect in two_level_effects(half_fraction())}
    found = {name: effect.estimate.difference for name, effect in effects.items()}
    # A from 3 at -1 to 3 at +1 is 6; C x D is A x B under another name.
    assert {name: value for name, value in found.items() if value} == {
        "A": 6.0,
        "A x B": 4.0,
        "C x D": 4.0,
    }
    assert effects["A"].aliases == ()
    assert effects["A x B"].aliases == (("C", "D"),)
    assert effects["B x C"].aliases == (("A", "D"),)
    assert len(effects) == 10


def test_rows_that_are_no_fraction_tell_little_apart():
    # One factor at a time: the columns of the two factors are correlated.
    rows = [(*run, 0, value) for run, value in (((0, 0), 1.0), ((1, 0), 2.0), ((0, 1), 3.0))]
    effects = two_level_effects(pd.DataFrame(rows, columns=["A", "B", "seed", "value"]))
    assert [(effect.factors, effect.aliases) for effect in effects[:2]] == [
        (("A",), (("B",), ("A", "B"))),
        (("B",), (("A",), ("A", "B"))),
    ]
    # The signs of A and B have the product sum 0, yet where A is high B is high, and where A is low
    # it is not always.
    runs = [(0, 1, 0), (0, 1, 1), (0, 0, 0), (1, 1, 0)]
    unbalanced = pd.DataFrame(
        [(*run, 0, 1.0) for run in runs], columns=["A", "B", "C", "seed", "value"]
    )
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
    assert warning.startswith(
        "The effect of A depends on B, or that of C on D: these rows do not show which ("
    )
