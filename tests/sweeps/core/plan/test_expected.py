"""The expected cost of a study with looks: by hand, and against an independent simulation."""

import dataclasses

import numpy as np
import pytest

from sweeps.components import STUDY as COMPONENTS
from sweeps.core.design import claims as declared
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import PlannedRow
from sweeps.core.plan import expected
from sweeps.core.plan.expected import Costs, claimed, course, expect, largest

M = "val/cam_miou"


def rules_of(num_rows, looks=(3, 5, 7, 10), again=False):
    """Tests of rows that all differ from one base, each of them a claim."""
    rows = [PlannedRow(0, 0, "base", 0, None, "base", None)]
    rows += [PlannedRow(n, 0, f"{n}", n, 0, "row", None) for n in range(1, num_rows + 1)]
    counts = [looks[-1]] * len(rows)
    if again:
        rows.append(PlannedRow(len(rows), 0, "again", len(rows), 0, "a/a", None))
        counts.append(looks[0])
    claims = tuple(
        declared.TestedClaim(0, f"{n}", (declared.Comparison(n, M, 0),))
        for n in range(1, num_rows + 1)
    )
    return declared.Tests(claims, tuple(rows), tuple(counts), Sequential(looks), 0.05, None)


def costs(number, training_s=None, concurrent=2, ahead=False):
    times_s = None if training_s is None else (training_s,) * number
    return Costs(tuple(range(number)), times_s, concurrent, ahead)


# Of an independent simulation of 10,000 studies with nine rows and one base, looks after 3, 5, 7
# and 10 seeds: the sizes of the effects, the share that is shown, seeds of a row, trainings.
MIXED = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 3.0, 3.0)


def test_trainings_and_power_are_those_of_an_independent_simulation():
    tests = rules_of(9)
    effects = {(n, M): size for n, size in enumerate(MIXED, 1)}
    mixed = expect(tests, effects, costs(10))
    assert mixed.studies >= expected.MIN_STUDIES
    assert mixed.error <= expected.PRECISION * mixed.course.trainings
    assert mixed.course.trainings == pytest.approx(73, abs=3 * mixed.error + 0.5)
    # .42, .98 and 1.0 of the claims with 1, 2 and 3 standard deviations.
    assert mixed.shown == pytest.approx((3 * 0.42 + 0.98 + 2) / 9, abs=0.05)
    nothing = expect(tests, claimed(tests, 0.0), costs(10))
    assert np.mean(nothing.num_seeds[1:]) == pytest.approx(5.8, abs=0.25)
    for size, shown, seeds in ((1.0, 0.42, 8.5), (2.0, 0.996, 7.5), (3.0, 1.0, 6.0)):
        same = expect(tests, claimed(tests, size), costs(10))
        assert same.shown == pytest.approx(shown, abs=0.12 if size == 1 else 0.03)
        assert np.mean(same.num_seeds[1:]) == pytest.approx(seeds, abs=1.2)


def test_the_effects_of_a_ladder_are_those_of_its_claims():
    # Each row is compared with the row above it, and rows share their noise.
    tests = COMPONENTS.resolve().tests
    effects = claimed(tests, 2.0)
    studies = expected._studies(tests, effects, 10)
    values = [
        [[next_study(cell, seed) for seed in range(10)] for cell in range(len(tests.num_seeds))]
        for next_study, _ in zip(studies, range(200), strict=False)
    ]
    for (number, metric), effect in effects.items():
        row = tests.rows[number]
        base = tests.rows[row.versus]
        differences = [
            study[row.cell][seed][metric] - study[base.cell][seed][metric]
            for study in values
            for seed in range(10)
        ]
        assert abs(effect) == 2.0
        assert np.mean(differences) == pytest.approx(effect, abs=0.08)
        assert np.std(differences) == pytest.approx(1.0, abs=0.06)


def test_known_noise_gives_each_metric_its_own_effect():
    tests = COMPONENTS.resolve().tests
    keys = {metric for _, metric in tests.places}
    sizes = {key: float(number) for number, key in enumerate(sorted(keys), 1)}
    assert {(key, abs(size)) for (_, key), size in claimed(tests, sizes).items()} == {
        *sizes.items()
    }


def test_each_look_waits_for_its_trainings():
    tests = rules_of(2, looks=(2, 3, 5), again=True)
    # Base and first row get 3 seeds, the second row 2, the A/A row 2: 8 trainings in the first
    # look, which are 3 rounds of 3; then 2 in one round.
    found = course(tests, (3, 3, 2, 2), costs(4, 60.0, concurrent=3))
    assert (found.trainings, found.wasted) == (10, 0)
    assert (found.training_s, found.wall_s) == (600.0, 240.0)
    # All rows to the end: 8, 3 and 6 trainings in 3, 1 and 2 rounds.
    most = largest(tests, costs(4, 60.0, concurrent=3))
    assert (most.trainings, most.training_s, most.wall_s) == (17, 17 * 60.0, 360.0)
    assert largest(tests, costs(4, 60.0, concurrent=3), 2).trainings == 11
    unknown = largest(tests, costs(4))
    assert (unknown.trainings, unknown.training_s, unknown.wall_s) == (17, None, None)


def test_free_workers_work_ahead_and_may_waste_a_training():
    tests = rules_of(2, looks=(2, 3, 5))
    # The first look has 6 trainings in 2 rounds of 4. Two workers are free in the second one: they
    # begin the third seed of the base and of the first row.
    ahead = costs(3, 60.0, concurrent=4, ahead=True)
    needed = course(tests, (3, 3, 2), ahead)
    assert needed.wall_s == course(tests, (3, 3, 2), costs(3, 60.0, concurrent=4)).wall_s - 60
    assert (needed.trainings, needed.wasted) == (8, 0)
    # Nothing was open any more.
    over = course(tests, (2, 2, 2), ahead)
    assert (over.trainings, over.wasted, over.wall_s) == (8, 2, 120.0)


def test_configurations_that_share_a_training_cost_one():
    tests = rules_of(3, looks=(2, 4))
    shared = dataclasses.replace(costs(4, 60.0, concurrent=1), served_by=(0, 0, 0, 3))
    # The base and two rows are one training of 4 seeds; the other row has 2.
    assert course(tests, (4, 2, 4, 2), shared).trainings == 6
    # A row may need more seeds than the configuration that serves it.
    assert course(tests, (2, 4, 2, 2), shared).trainings == 6


def test_the_simulation_is_the_same_each_time():
    tests = rules_of(3)
    first, second = (expect(tests, claimed(tests, 1.0), costs(4)) for _ in range(2))
    assert first == second
