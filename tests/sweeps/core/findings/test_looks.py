"""Looks of a sequential study, replayed by hand; p values by scipy."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from sweeps.core.design.designs import Block
from sweeps.core.design.paper import Claim, Paper, PaperRow
from sweeps.core.design.seeds import Futility, Sequential
from sweeps.core.design.study import BASE_AGAIN
from sweeps.core.findings.analysis import analyse
from sweeps.core.findings.looks import looks_of, needed_trials, why_not_tested
from sweeps.core.statistics.paired import detectable_effect
from sweeps.core.statistics.sequential import boundaries
from sweeps.core.store.study_record import StudyRecord
from tests.sweeps.core.records import M, make_study

LOOKS = (3, 5, 7, 10)
FIRST = (3 / 10) ** 2
"""Part of its level that a claim has spent after the first look."""
NEVER = Sequential(futility=None)

# Differences of a row from its base, by seed. Claims are that the base is better, so a negative
# difference has the claimed sign.
SURE = [-0.1, -0.101, -0.102, -0.1, -0.101, -0.102, -0.1, -0.101, -0.102, -0.1]
LIKELY = [-0.10, -0.11, -0.12, -0.10, -0.11, -0.12, -0.10, -0.11, -0.12, -0.10]
"""After three seeds: mean -0.11, sd 0.01, t = -19.05, p = 0.0027, level p / 0.09 = 0.0304."""
LATER = [-0.10, -0.02, -0.06, -0.07, -0.06, -0.07, -0.06, -0.06, -0.07, -0.06]
"""Does not cross after three seeds, and crosses after five or seven."""
NOTHING = [0.01, -0.01, 0.0, 0.01, -0.01, 0.01, -0.01, 0.0, 0.01, -0.01]


def study(
    differences: dict[str, list[float]],
    claims: list[tuple[str, ...]],
    rules: Sequential = NEVER,
    states: dict[tuple[str, int], str] | None = None,
    finished: int | None = None,
    **options: object,
) -> StudyRecord:
    """A study of these rows whose paper claims that the base is better than each of ``claims``.

    Args:
        differences: Differences from the base, by row.
        claims: Rows that each claim calls worse.
        rules: The looks.
        states: Trials that did not finish.
        finished: Number of seeds that have finished; all where none is given.
    """
    base = [0.5 + 0.01 * (seed % 4) for seed in range(10)]
    rows = {"base": base} | {
        label: [value + one for value, one in zip(base, of_row, strict=True)]
        for label, of_row in differences.items()
    }
    paper = Paper(
        "T",
        "S",
        tuple(PaperRow(label, {M: 0.7}) for label in rows),
        tuple(Claim(" and ".join(than), M, "base", than, 1.0, "small") for than in claims),
    )
    waiting = {
        (label, seed): "waiting"
        for label in rows
        for seed in range(10 if finished is None else finished, 10)
    }
    return make_study(
        rows, paper=paper, sequential=rules, states=waiting | (states or {}), **options
    )


def p_of(differences: list[float], n: int) -> float:
    return float(stats.ttest_1samp(differences[:n], 0).pvalue)


def outcomes(record: StudyRecord) -> list[str]:
    return [claim.outcome for claim in looks_of(record).claims]


def test_one_claim_that_crosses_at_the_first_look():
    looks = looks_of(study({"a": LIKELY}, [("a",)]))
    (claim,) = looks.claims
    p = p_of(LIKELY, 3)
    assert p == pytest.approx(0.00274, abs=1e-5)
    assert (claim.outcome, claim.n, claim.num_looks) == ("shown", 3, 1)
    assert claim.p == pytest.approx(p / FIRST)
    assert claim.boundary == pytest.approx(0.05 * FIRST)
    (comparison,) = claim.comparisons
    (look,) = comparison.looks
    assert (look.n, look.difference, look.p) == (3, pytest.approx(-0.11), pytest.approx(p))
    # The repeated interval excludes zero, as the test crosses at 5 %.
    low, high = stats.t.interval(1 - 0.05 * FIRST, 2, -0.11, 0.01 / math.sqrt(3))
    assert (comparison.test.low, comparison.test.high) == pytest.approx((low, high))
    assert (looks.num_done, looks.num_seeds, looks.next_seeds) == (1, (3, 3), (3, 3))


def test_an_open_claim_goes_on_and_its_boundary_is_that_of_the_next_look():
    looks = looks_of(study({"a": LATER}, [("a",)], finished=3))
    (claim,) = looks.claims
    assert p_of(LATER, 3) / FIRST > 0.05
    assert (claim.outcome, claim.n) == ("open", 3)
    assert claim.boundary == boundaries(LOOKS, 2.0).boundary(1, 0.05)
    assert (looks.num_done, looks.num_seeds) == (1, (5, 5))
    # While the second look waits for results, the third could come.
    assert looks.next_seeds == (7, 7)


def test_a_second_claim_passes_after_the_first():
    """Alone against another open claim, p / 0.09 = 0.0304 is not enough at a level of 0.025."""
    assert outcomes(study({"a": NOTHING, "b": LIKELY}, [("a",), ("b",)], finished=3)) == [
        "open",
        "open",
    ]
    looks = looks_of(study({"a": SURE, "b": LIKELY}, [("a",), ("b",)], finished=3))
    assert [claim.outcome for claim in looks.claims] == ["shown", "shown"]
    assert looks.claims[0].p == pytest.approx(2 * p_of(SURE, 3) / FIRST)
    assert looks.claims[1].p == pytest.approx(p_of(LIKELY, 3) / FIRST)
    # Boundaries of the steps of Holm's correction: half of the level, then all of it.
    assert [claim.boundary for claim in looks.claims] == pytest.approx(
        [0.025 * FIRST, 0.05 * FIRST]
    )


def test_a_claim_of_three_comparisons_waits_for_the_last():
    """Each comparison gets seeds until it has crossed; the base goes on for the last one."""
    slow = [-0.10, 0.02, -0.09, -0.05, -0.1, -0.11, -0.09, -0.1, -0.1, -0.1]
    record = study({"a": SURE, "b": LATER, "c": slow}, [("a", "b", "c")])
    looks = looks_of(record)
    (claim,) = looks.claims
    assert claim.outcome == "shown"
    bounds = boundaries(LOOKS, 2.0)
    for comparison, differences in zip(claim.comparisons, (SURE, LATER, slow), strict=True):
        crossed = [
            p_of(differences, n) <= bounds.boundary(look, 0.05) for look, n in enumerate(LOOKS)
        ]
        number = crossed.index(True)
        assert comparison.n == LOOKS[number]
        assert [look.n for look in comparison.looks] == list(LOOKS[: number + 1])
    assert [comparison.n for comparison in claim.comparisons] == [3, 5, 7]
    assert looks.num_seeds == (7, 3, 5, 7)
    # The claim has the weakest evidence of the three.
    assert claim.p == max(comparison.p for comparison in claim.comparisons)
    assert claim.p == pytest.approx(bounds.level(1, p_of(LATER, 5)))


def test_the_opposite_sign_of_one_of_three_comparisons_takes_bonferronis_correction():
    wrong = [-one for one in LIKELY]
    (alone,) = looks_of(study({"a": wrong}, [("a",)], finished=3)).claims
    assert (alone.outcome, alone.p) == ("opposite", pytest.approx(p_of(LIKELY, 3) / FIRST))
    # Three times 0.0304 is not significant.
    rows = {"a": wrong, "b": NOTHING, "c": NOTHING}
    (three,) = looks_of(study(rows, [("a", "b", "c")], finished=3)).claims
    assert (three.outcome, three.p) == ("open", pytest.approx(3 * p_of(LIKELY, 3) / FIRST))
    rows["a"] = [-one for one in SURE]
    assert outcomes(study(rows, [("a", "b", "c")], finished=3)) == ["opposite"]


def test_futility_gives_up_from_five_seeds_on():
    """The upper bound by hand, against the effect that ten seeds show in half of the cases."""
    target = detectable_effect(10, 1, 0.05, 0.5)

    def bound(differences: list[float], n: int) -> float:
        correction = math.gamma((n - 1) / 2) / (math.sqrt((n - 1) / 2) * math.gamma((n - 2) / 2))
        effect = abs(np.mean(differences[:n])) / np.std(differences[:n], ddof=1) * correction
        return effect + stats.norm.ppf(0.9) * math.sqrt(1 / n + effect**2 / (2 * n))

    assert bound(NOTHING, 5) < target
    rules = Sequential()
    looks = looks_of(study({"a": NOTHING}, [("a",)], rules))
    assert [(claim.outcome, claim.n) for claim in looks.claims] == [("given up", 5)]
    assert looks.num_seeds == (5, 5)
    # Not with three seeds, whose bound is low by chance, and not with a larger effect.
    assert outcomes(study({"a": NOTHING}, [("a",)], rules, finished=3)) == ["open"]
    some = [one - 0.006 for one in NOTHING]
    assert bound(some, 5) > target
    assert outcomes(study({"a": some}, [("a",)], rules, finished=5)) == ["open"]
    # Nothing is given up without a rule, and not at the last look.
    assert outcomes(study({"a": NOTHING}, [("a",)])) == ["undecided"]
    late = Sequential(futility=Futility(from_seeds=10))
    assert outcomes(study({"a": NOTHING}, [("a",)], late)) == ["undecided"]


def test_a_claim_that_was_given_up_passes_when_another_is_shown():
    """0.0304 at the first look is not enough for one of two claims, and is for the last one."""
    spoilt = [*LIKELY[:3], 0.2, 0.15, *LIKELY[5:]]
    late = [-0.10, 0.0, -0.07, -0.06, -0.08, -0.09, -0.08, -0.08, -0.08, -0.08]
    rows, claims, rules = {"a": late, "b": spoilt}, [("a",), ("b",)], Sequential()
    assert outcomes(study(rows, claims, rules, finished=3)) == ["open", "open"]
    assert outcomes(study(rows, claims, rules, finished=5)) == ["open", "given up"]
    looks = looks_of(study(rows, claims, rules))
    assert [claim.outcome for claim in looks.claims] == ["shown", "shown"]
    assert looks.claims[1].p == pytest.approx(p_of(LIKELY, 3) / FIRST)
    # It got no seeds after it was given up.
    assert looks.num_seeds[2] == 5
    assert looks.num_seeds[1] == looks.claims[0].n > 5
    # At its present level the first look has crossed, so the drawing shows why.
    assert looks.claims[1].comparisons[0].looks[0].p <= looks.claims[1].boundaries[0]


def test_no_difference_larger_than_a_margin():
    """The interval at the level of the claim lies inside of the margin."""
    equal = [one / 100 for one in NOTHING]
    (claim,) = looks_of(study({"a": equal}, [("a",)], margin=0.01, finished=3)).claims
    error = stats.sem(equal[:3])
    p = 2 * stats.t.sf((0.01 - abs(np.mean(equal[:3]))) / error, 2)
    assert (claim.outcome, claim.p) == ("no difference", pytest.approx(p / FIRST))
    assert outcomes(study({"a": equal}, [("a",)], margin=0.0001, finished=3)) == ["open"]
    assert outcomes(study({"a": equal}, [("a",)], finished=3)) == ["open"]
    # Several comparisons: all have to lie inside, and the evidence is doubled.
    (claim,) = looks_of(
        study({"a": equal, "b": equal}, [("a", "b")], margin=0.01, finished=3)
    ).claims
    assert (claim.outcome, claim.p) == ("no difference", pytest.approx(2 * p / FIRST))


def test_a_claim_with_a_diverged_training_is_not_tested_unless_its_value_is_declared():
    states = {("a", 1): "diverged"}
    record = study({"a": SURE, "b": LIKELY}, [("a",), ("b",)], states=states, finished=3)
    looks = looks_of(record)
    assert [claim.outcome for claim in looks.claims] == ["not tested", "open"]
    assert why_not_tested(record, looks.claims[0]) == "a, seed 1 diverged"
    # It stays in the family: 2 times 0.0304 is not significant after three seeds.
    assert looks.claims[0].p is None
    assert looks.num_seeds[1] == 3
    # With a value it is a result as any other: 0 is far below the base.
    collapse = Sequential(futility=None, diverged_value=0.0)
    (claim,) = looks_of(study({"a": SURE}, [("a",)], collapse, states, finished=3)).claims
    base = np.array([0.5, 0.51, 0.52])
    differences = np.array([0.5 + SURE[0], 0.0, 0.52 + SURE[2]]) - base
    assert claim.comparisons[0].looks[0].p == pytest.approx(
        stats.ttest_1samp(differences, 0).pvalue
    )
    assert claim.comparisons[0].looks[0].difference == pytest.approx(differences.mean())


def test_a_training_that_diverges_at_a_later_look_ends_its_claim():
    record = study({"a": NOTHING}, [("a",)], states={("base", 4): "diverged"})
    (claim,) = looks_of(record).claims
    assert (claim.outcome, claim.n, claim.p) == ("not tested", 5, None)
    assert [look.n for look in claim.comparisons[0].looks] == [3]
    assert claim.comparisons[0].p is None
    assert why_not_tested(record, claim) == "base, seed 4 diverged"


@pytest.mark.parametrize("state", ["waiting", "running", "failed"])
def test_an_incomplete_prefix_decides_nothing(state: str):
    states = {("a", 2): state}
    looks = looks_of(study({"a": SURE, "b": SURE}, [("a",), ("b",)], states=states))
    assert [claim.outcome for claim in looks.claims] == ["open", "open"]
    assert [claim.n for claim in looks.claims] == [0, 0]
    assert looks.num_seeds == (3, 3, 3)
    # The second look: the claim that is complete waits, too.
    states = {("a", 4): state}
    looks = looks_of(study({"a": LATER, "b": LATER}, [("a",), ("b",)], states=states))
    assert [(claim.outcome, claim.n) for claim in looks.claims] == [("open", 3), ("open", 3)]
    assert looks.num_seeds == (5, 5, 5)


def test_a_missing_seed_of_a_decided_claim_holds_nobody_up():
    states = {("a", 4): "waiting"}
    looks = looks_of(study({"a": SURE, "b": LATER}, [("a",), ("b",)], states=states))
    assert [claim.outcome for claim in looks.claims] == ["shown", "shown"]
    assert looks.num_seeds[1] == 3


def test_results_beyond_a_look_are_not_used():
    """Whatever lies in the ledger beyond the looks, the study is the same."""
    changed = [*LIKELY[:3], 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
    record = study({"a": changed}, [("a",)])
    assert looks_of(record) == looks_of(study({"a": LIKELY}, [("a",)]))
    assert looks_of(needed_trials(record)) == looks_of(record)
    assert len(needed_trials(record).trials) == 6
    row = analyse(record).rows[1]
    assert (row.finished, row.planned, row.figures[M].paired.n) == (3, 3, 3)


def test_one_look_is_the_t_test_with_its_interval():
    rules = Sequential(looks=(10,), futility=None)
    (claim,) = looks_of(study({"a": LATER}, [("a",)], rules)).claims
    test = stats.ttest_1samp(LATER, 0)
    assert claim.p == pytest.approx(test.pvalue)
    interval = test.confidence_interval(0.95)
    (comparison,) = claim.comparisons
    assert (comparison.test.low, comparison.test.high) == pytest.approx(
        (interval.low, interval.high)
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_fixed_list_is_holms_correction_over_all_declared_comparisons(seed: int):
    generator = np.random.default_rng(seed)
    n, labels = int(generator.integers(2, 6)), list("abcde")
    base = generator.normal(0.5, 0.02, n)
    rows = {"base": base.tolist()} | {
        label: (base + generator.normal(generator.choice([0, 0.05]), 0.01, n)).tolist()
        for label in labels
    }
    looks = looks_of(make_study(rows))
    p = [stats.ttest_rel(rows[label], rows["base"]).pvalue for label in labels]
    rejected, corrected, *_ = multipletests(p, 0.05, "holm")
    assert [claim.p for claim in looks.claims] == pytest.approx(corrected)
    assert [claim.outcome for claim in looks.claims] == [
        "shown" if yes else "undecided" for yes in rejected
    ]
    assert {claim.num_looks for claim in looks.claims} == {1}
    assert looks.num_seeds == (n,) * 6


def test_the_common_seeds_are_those_that_all_rows_have():
    rows = {"a": SURE, "b": LATER, "c": NOTHING}
    record = study(rows, [("a",), ("b",)])
    looks = looks_of(record)
    # The row without a claim gets the seeds of the first look.
    assert looks.num_seeds == (5, 3, 5, 3)
    assert looks.common == 3
    figures = [row.figures[M] for row in analyse(record).rows]
    assert [entry.summary.n for entry in figures] == [5, 3, 5, 3]
    assert [entry.paired.n for entry in figures[1:]] == [3, 5, 3]
    assert [entry.declared for entry in figures] == [False, True, True, False]
    plain = stats.ttest_1samp(NOTHING[:3], 0).confidence_interval(0.95)
    assert (figures[3].paired.low, figures[3].paired.high) == pytest.approx((plain.low, plain.high))
    assert figures[3].p_holm is None


def test_a_comparison_of_two_claims_shows_the_one_with_more_seeds():
    record = study({"a": LATER, "b": NOTHING}, [("a",), ("a", "b")])
    looks = looks_of(record)
    place = looks.claims[0].comparisons[0].comparison
    state = looks.comparisons[place.row, place.metric]
    assert state.n == max(claim.comparisons[0].n for claim in looks.claims)
    assert looks.claim_of[place.row, place.metric].comparisons[0] == state


def test_a_block_without_a_paper_tests_that_rows_differ():
    base = [0.5 + 0.01 * seed for seed in range(10)]
    rows = {
        "base": base,
        "up": [one - other for one, other in zip(base, SURE, strict=True)],
        "down": [one + other for one, other in zip(base, SURE, strict=True)],
        BASE_AGAIN: base[:3],
    }
    block = Block("(a)", (), ("method.aux_block",), (M,), None)
    record = make_study(rows, blocks=[(block, ["base", "up", "down"])], sequential=Sequential())
    claims = looks_of(record).claims
    assert [claim.claim.name for claim in claims] == [
        "up differs from base in M",
        "down differs from base in M",
    ]
    assert [claim.outcome for claim in claims] == ["shown", "shown"]
