"""How often sequential studies are wrong: 2,000 studies of invented trainings, as real ones run.

``make simulate`` runs more of them. Bounds leave three standard errors of the simulation; every
study has a fixed seed.
"""

import functools
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks._simulated_studies import CASES, Case, Simulation, simulation_of
from sweeps.core.findings import replay
from sweeps.core.findings.looks import needed_trials
from sweeps.core.statistics.sequential import Boundaries

pytestmark = pytest.mark.slow

LEVEL = 0.05
DECIDED = ("shown", "opposite", "no difference")


def bound(rate, studies):
    return rate + 3 * math.sqrt(rate * (1 - rate) / studies)


def simulate(out, studies, names):
    """Figures of cases by name, from the command: under pytest, checks of types take longer."""
    cases = [word for name in names for word in ("--case", name)]
    command = [sys.executable, "-m", "benchmarks", "sequential-seeds", *cases]
    subprocess.run(
        [*command, "--studies", str(studies), "--out", str(out)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return {row["case"]: row for row in json.loads(out.read_text())["cases"]}


def check(row, studies):
    assert row["false"] <= bound(LEVEL, studies), row
    for cover in ("covers_at_stop", "covers_at_all_looks"):
        assert row[cover] >= 0.95 - 3 * row[f"{cover}_se"], row


def test_statements_about_nothing_are_rare(tmp_path):
    check(simulate(tmp_path / "out.json", 500, ["null"])["null"], 500)


def test_statements_are_true_and_cost_what_was_computed(tmp_path):
    studies = 70
    rows = simulate(tmp_path / "out.json", studies, sorted(CASES.keys() - {"null"}))
    for row in rows.values():
        check(row, studies)
    # Power and trainings with Holm's correction over nine claims.
    for name, most, powers in (
        ("mixed", 73, (0.42, 0.98, 1.0)),
        ("mixed, cap 20", 118, (0.89, 1.0, 1.0)),
        ("mixed, fixed 10", 100, (0.51, 0.99, 1.0)),
    ):
        for effect, power in enumerate(powers, 1):
            figure = f"shown_at_{effect}_sd"
            assert rows[name][figure] >= power - 3 * max(rows[name][f"{figure}_se"], 0.005), name
        assert rows[name]["trainings"] <= most + 3 * rows[name]["trainings_se"]
    assert rows["mixed, fixed 10"]["trainings"] == 100


def test_looks_without_their_boundaries_are_wrong_more_often(monkeypatch):
    """The simulation can fail: all that there is tested at 5 %, look by look."""

    class Peeking(Boundaries):
        def boundary(self, look, level):
            return level

        def level(self, look, p):
            return p

    monkeypatch.setattr(replay, "boundaries", functools.cache(Peeking))
    simulation = simulation_of("null, look at every seed")
    false = [
        any(simulation.is_false(state) for state in ended.looks.claims)
        for ended in (simulation.run(simulation.draw((seed,))) for seed in range(60))
    ]
    assert np.mean(false) > bound(LEVEL, 60)


@pytest.mark.parametrize(
    "name", ["mixed", "table 5, margin of 1.5 sd", "diverged seeds, not tested"]
)
def test_kills_and_results_that_are_there_before_change_nothing(name):
    simulation = simulation_of(name)
    for seed in range(8):
        results = simulation.draw((seed, 77))
        plain = simulation.run(results)
        needed = needed_trials(plain.record)
        killed = simulation.run(results, kills=np.random.default_rng(seed))
        assert killed.record == plain.record
        for other in (
            simulation.run(results, ahead=True, kills=np.random.default_rng(seed)),
            # Entries beyond a look are not used.
            simulation.run(results, present=results),
        ):
            assert needed_trials(other.record) == needed
            assert other.looks == plain.looks


def test_a_decided_claim_stays_decided():
    """Who stops at any time reads nothing that the end takes back."""
    simulation = simulation_of("mixed")
    for seed in range(8):
        ended = simulation.run(simulation.draw((seed, 78)), kills=np.random.default_rng(seed))
        for state in ended.seen:
            for before, after in zip(state.claims, ended.looks.claims, strict=True):
                assert before.outcome not in DECIDED or before.outcome == after.outcome


def test_only_rows_of_open_claims_get_seeds():
    """One row is far away, four are equal to the base: the first look decides the one."""
    simulation = Simulation(Case(CASES["null, 5 claims"].study, {"row 1": 300.0}))
    ended = simulation.run(simulation.draw((1,)))
    final = ended.looks
    assert final.claims[0].outcome == "shown"
    assert final.num_seeds[1] == 3
    assert final.num_seeds[0] == max(final.num_seeds) > 3
    assert ended.num_trainings == sum(final.num_seeds)
