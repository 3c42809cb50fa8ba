"""What a design can answer, against power worked out from the noncentral t distribution and against
known noise.
"""

import math

import numpy as np
import pytest
from scipy import stats

from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, Study
from sweeps.core.plan.power import SeedNoise, power_check, seed_noise
from sweeps.core.statistics.sequential import boundaries
from tests.sweeps.core.entries import amend_entry, make_entry
from toco.config import replace
from toco.registry import load

NANO = load("toco.recipes", "shapes_nano").recipe()
M, SEG = "val/cam_miou", "val/seg_miou"


def study(**changes):
    values = {
        "name": "example",
        "title": "An example",
        "recipe": "shapes_nano",
        "design": OneFactor(
            (Factor("method.temperature", tuple(0.1 * (1 + number) for number in range(10))),)
        ),
        "seeds": (0, 1, 2),
        "metrics": (Metric(M, "M"), Metric(SEG, "seg")),
    }
    return Study(**{**values, **changes}).resolve()


def power_of(effect_sd, n, comparisons):
    """Of the two-sided paired t test, from the distribution itself; the far tail holds nothing."""
    return stats.nct.sf(
        stats.t.ppf(1 - 0.05 / comparisons / 2, n - 1), n - 1, effect_sd * math.sqrt(n)
    )


def entry(config, value, *, code="a", **changes):
    values = {
        "status": "finished",
        "config": config.model_dump(mode="json"),
        "metrics": {M: value},
        "origin": {"search": False},
        "identity": {"code": {"toco": code}, "data": {}, "weights": None, "versions": {}},
    }
    return make_entry(**{**values, **changes})


@pytest.mark.parametrize(("seeds", "known"), [(3, 10), (5, 3), (10, 1.5)])
def test_nine_comparisons_detect_what_is_known_for_these_seeds(seeds, known):
    check = power_check(study(seeds=tuple(range(seeds))), {})
    assert check.power.comparisons == 9
    assert check.power.n == seeds
    assert check.power.detectable_sd == pytest.approx(known, rel=0.06)
    assert power_of(check.power.detectable_sd, seeds, 9) == pytest.approx(0.8, abs=1e-3)


def test_with_known_noise_points_and_seeds_are_said():
    noise = {M: SeedNoise(0.01, 12, True)}
    check = power_check(study(), noise)
    (metric,) = check.power.metrics.values()  # seg is a column, but compared by nobody
    assert metric.detectable == pytest.approx(0.01 * check.power.detectable_sd)
    # Half a point at one point of noise: the smallest number of seeds with 80 % power.
    assert power_of(0.5, metric.seeds_needed, 9) >= 0.8 > power_of(0.5, metric.seeds_needed - 1, 9)
    assert f"0.5 points take {metric.seeds_needed} seeds" in check.refusal
    assert "seed noise 1.00 points (paired differences, 12 trainings)" in check.refusal
    assert f"It takes {metric.seeds_needed} seeds." in check.refusal


def test_a_design_is_refused_where_it_cannot_detect_the_smallest_effect_and_only_there():
    # Ten seeds detect 1.5 standard deviations.
    ten = study(seeds=tuple(range(10)))
    enough, short = SeedNoise(0.0030, 12, True), SeedNoise(0.0036, 12, True)
    assert power_check(ten, {M: enough}).refusal is None
    assert not power_check(ten, {M: enough}).underpowered
    assert power_check(ten, {M: short}).refusal is not None


def test_with_unknown_noise_the_effect_it_is_blind_to_decides():
    three = power_check(study(seeds=(0, 1, 2)), {})
    assert three.underpowered
    # Four seeds detect 4.5 standard deviations: fewer than the five that may stay unseen.
    assert power_of(5.0, 4, 9) >= 0.8 > power_of(5.0, 3, 9)
    assert "It takes 4 seeds." in three.refusal
    assert not power_check(study(seeds=tuple(range(5))), {}).underpowered
    assert power_check(study(seeds=tuple(range(5)), largest_blind_effect=2.0), {}).underpowered


def test_a_study_of_directions_runs_and_says_what_its_rows_can_read():
    # Only a study of directions rules "contradicted" out.
    for check, end in (
        (power_check(study(purpose="direction"), {}), "underpowered, never contradicted."),
        (power_check(study(), {}, accept_underpowered=True), "will be called underpowered."),
    ):
        assert check.underpowered
        assert check.refusal is None
        assert check.sentences[-2].endswith(end)


def test_a_study_with_looks_is_judged_by_its_claims_and_its_last_look():
    # Nine claims of one comparison. The boundary of the last look is a bit below the level.
    check = power_check(study(seeds=Sequential()), {})
    last = boundaries((3, 5, 7, 10), 2.0).boundary(3, 0.05 / 9)
    assert (check.power.comparisons, check.power.n) == (9, 10)
    assert power_of(check.power.detectable_sd, 10, 0.05 / last) == pytest.approx(0.8, abs=1e-3)
    assert (check.underpowered, check.refusal) == (False, None)
    assert check.sentences[0] == (
        "9 claims with 9 comparisons are tested after 3, 5, 7, 10 seeds. The first claim is shown "
        f"at p <= {0.05 / 9 * 0.3**2:.2g} at the first look, or at p <= {last:.2g} at the last one."
    )
    assert check.sentences[1] == (
        f"With at most 10 seeds, 9 claims: an effect of {check.power.detectable_sd:.1f} standard "
        "deviations of the paired difference is shown with 80 % probability (by the last look "
        "alone)."
    )
    # Three seeds at the first look are no reason to refuse it; three at the last one are.
    assert power_check(study(seeds=Sequential(looks=(2, 3))), {}).refusal is not None
    noise = {M: SeedNoise(0.01, 12, True)}
    short = power_check(study(seeds=Sequential()), noise)
    detectable = 0.01 * short.power.detectable_sd
    assert short.power.metrics[M].detectable == pytest.approx(detectable)
    assert "declare fewer claims" in short.refusal
    assert "--sequential" not in short.refusal
    nevertheless = power_check(study(seeds=Sequential(), purpose="direction"), noise)
    assert nevertheless.sentences[-1].endswith("ends as not decidable.")


def test_a_hopeless_list_of_seeds_says_what_looks_would_take():
    for check in (
        power_check(study(), {}).refusal,
        power_check(study(purpose="direction"), {}).sentences[-1],
    ):
        sentence = check[check.index("With --sequential") :]
        assert sentence.startswith(
            "With --sequential, at most 10 seeds: a claim whose effects are 2 standard deviations "
            "is shown with > 99 % power in "
        )
        # Of 10,000 simulated studies: 99.6 % with 7.5 seeds of each of nine rows. The base goes
        # on to the end; the A/A row has three seeds.
        trainings = int(sentence.split(" power in ")[1].split()[0])
        assert trainings == pytest.approx(9 * 7.5 + 9.5 + 3, abs=3)
        fixed = 100 * power_of(2.0, 3, 9)
        assert sentence.endswith(f"(fixed: 33 trainings, {fixed:.0f} %).")
    # Ten seeds are no fewer than looks would give, so nothing is said.
    ten = power_check(study(seeds=tuple(range(10))), {M: SeedNoise(0.05, 12, True)})
    assert ten.underpowered
    assert "--sequential" not in ten.refusal


def test_one_seed_detects_nothing():
    check = power_check(study(seeds=(0,)), {M: SeedNoise(0.0, 4, True)})
    assert check.power.detectable_sd == math.inf
    assert check.power.metrics[M].detectable == math.inf
    assert check.refusal is not None
    assert "no effect of any size" in check.sentences[0]


def test_without_comparisons_there_is_nothing_to_refuse():
    alone = study(design=OneFactor((Factor("method.temperature", (0.5,)),)))
    check = power_check(alone, {})
    assert (check.power.comparisons, check.underpowered, check.refusal) == (0, False, None)


def test_the_noise_is_that_of_paired_differences():
    other = replace(NANO, {"method.temperature": 0.3})
    a, b = {0: 0.50, 1: 0.54, 2: 0.52}, {0: 0.51, 1: 0.56, 2: 0.51}
    entries = [entry(NANO.model_copy(update={"seed": seed}), value) for seed, value in a.items()]
    entries += [entry(other.model_copy(update={"seed": seed}), value) for seed, value in b.items()]
    noise = seed_noise(entries, NANO, M)
    assert noise.sd == pytest.approx(np.std([-0.01, -0.02, 0.01], ddof=1))
    assert (noise.trainings, noise.paired) == (6, True)
    # One config alone: its spread, times the root of two.
    alone = seed_noise(entries[:3], NANO, M)
    assert alone.sd == pytest.approx(0.02 * math.sqrt(2))
    assert (alone.trainings, alone.paired) == (3, False)
    assert seed_noise(entries[:1], NANO, M) is None
    assert seed_noise(entries, NANO, SEG) is None


def test_the_pooled_noise_converges_to_the_true_one():
    generator = np.random.default_rng(0)
    entries = []
    for cell in range(20):
        config = replace(NANO, {"method.temperature": 0.1 + 0.01 * cell})
        shared = np.random.default_rng(7).normal(0, 0.03, 10)  # of the seed, in every cell
        values = 0.5 + cell / 100 + shared + generator.normal(0, 0.01, 10)
        entries += [
            entry(config.model_copy(update={"seed": s}), float(v)) for s, v in enumerate(values)
        ]
    assert seed_noise(entries, NANO, M).sd == pytest.approx(0.01 * math.sqrt(2), rel=0.1)


@pytest.mark.parametrize("changes", [
    {"status": "diverged", "metrics": {}},
    {"origin": {"search": True}},
    {"metrics": {M: float("nan")}},
    {"config": {"of": "an older version"}},
    {"config": replace(NANO, {"seed": 1, "num_steps": 80}).model_dump(mode="json")},
    {"config": replace(NANO, {"seed": 1, "data.num_val": 10}).model_dump(mode="json")},
    {"identity": {"code": {"toco": "b"}, "data": {}, "weights": None, "versions": {}}},
])  # fmt: skip
def test_what_is_not_comparable_is_left_out(changes):
    first, second = entry(NANO, 0.5), entry(NANO.model_copy(update={"seed": 1}), 0.52)
    assert seed_noise([first, second], NANO, M) is not None
    assert seed_noise([first, amend_entry(second, **changes)], NANO, M) is None
