"""Boundaries of repeated t tests against simulation, quadrature and published designs."""

import math

import numpy as np
import pytest
from scipy import special, stats

from sweeps.core.statistics import sequential
from sweeps.core.statistics.sequential import Boundaries, boundaries

LOOKS, SPENDING = (3, 5, 7, 10), 2.0
LEVELS = (0.05, 0.05 / 5, 0.05 / 9)
PATHS = 2_000_000


def z_of(bounds, level):
    """The boundaries as values of a standard normal, for a two-sided test."""
    return np.array(
        [-special.ndtri(bounds.boundary(k, level) / 2) for k in range(len(bounds.looks))]
    )


# --- one look ---


@pytest.mark.parametrize("n", [2, 3, 10])
def test_one_look_is_the_t_test(n):
    bounds = boundaries((n,), SPENDING)
    for p in (1e-12, 0.003, 0.05, 0.4, 1.0):
        assert bounds.boundary(0, p) == p
        assert bounds.level(0, p) == p


def test_the_first_look_spends_its_part_of_the_level():
    bounds = boundaries(LOOKS, SPENDING)
    assert bounds.boundary(0, 0.05) == pytest.approx(0.05 * 0.3**2, rel=1e-12)
    assert bounds.level(0, 0.0045) == pytest.approx(0.05, rel=1e-12)
    assert bounds.level(0, 0.5) == 1.0


# --- simulation ---


@pytest.fixture(scope="module")
def paths():
    """|t| of two million null paths at each look of 3, 5, 7, 10 seeds."""
    generator = np.random.default_rng(20)
    sums, squares = np.zeros(PATHS), np.zeros(PATHS)
    statistics = []
    for n in range(1, LOOKS[-1] + 1):
        x = generator.standard_normal(PATHS)
        sums += x
        squares += x * x
        if n in LOOKS:
            mean = sums / n
            statistics.append(np.abs(mean) / np.sqrt((squares / n - mean**2) / (n - 1)))
    return statistics


@pytest.mark.parametrize("level", LEVELS)
def test_boundaries_as_two_million_simulated_paths(paths, level):
    bounds = boundaries(LOOKS, SPENDING)
    parts = level * np.diff((np.array(LOOKS) / LOOKS[-1]) ** SPENDING, prepend=0.0)
    alive, simulated = np.ones(PATHS, bool), np.ones(PATHS, bool)
    for look, (n, t, part) in enumerate(zip(LOOKS, paths, parts, strict=True)):
        # The error that our boundary spends.
        p = bounds.boundary(look, level)
        crossed = alive & (t >= -stats.t.ppf(p / 2, n - 1))
        alive &= ~crossed
        assert crossed.mean() == pytest.approx(part, abs=2.6 * math.sqrt(part / PATHS))
        # The boundary that spends the part exactly on these paths.
        number = round(part * PATHS)
        highest = np.partition(t[simulated], -number)[-number]
        simulated &= t < highest
        error = 2.6 / math.sqrt(number) if level < 0.05 else 0.0
        assert p == pytest.approx(2 * stats.t.sf(highest, n - 1), rel=0.03 + error)


# --- a second implementation ---


def crosses_second(level, p_first, p_second):
    """P(a t test of 3 does not cross and one of 5 crosses), by quadrature over the batches.

    The sum of all five values gives u, the contrast between the batches gives v. The squares inside
    the batches are W1 ~ chi2(2) and W2 ~ chi2(1): given u and v, the law of (W1, W2) has a closed
    form.
    """
    first, second = stats.t.ppf(1 - p_first / 2, 2), stats.t.ppf(1 - p_second / 2, 4)
    u, v = np.meshgrid(np.linspace(0, 8, 801), np.linspace(-8, 8, 1601), indexing="ij")
    z = (math.sqrt(3) * u + math.sqrt(2) * v) / math.sqrt(5)
    low = 2 * z**2 / first**2  # W1 of at least this does not cross after 3
    room = np.maximum(4 * u**2 / second**2 - v**2 - low, 0)  # W1 + W2 below low + room crosses
    inside = np.exp(-low / 2) * (
        2 * special.ndtr(np.sqrt(room))
        - 1
        - np.exp(-room / 2) * 2 * np.sqrt(room) / math.sqrt(2 * math.pi)
    )
    density = np.exp(-(u**2 + v**2) / 2) / (2 * math.pi)
    over_v = np.trapezoid(density * inside, dx=0.01, axis=1)
    # Both signs of u.
    return 2 * np.trapezoid(over_v, dx=0.01)


@pytest.mark.parametrize("level", [0.5, 0.05, 0.05 / 9, 1e-4])
def test_two_looks_as_quadrature_over_the_batches(level):
    bounds = boundaries((3, 5), SPENDING)
    spent = crosses_second(level, bounds.boundary(0, level), bounds.boundary(1, level))
    assert spent == pytest.approx(level * (1 - 0.6**2), rel=0.005)


def test_the_quadrature_of_the_test_is_exact():
    # No boundary at the first look: the plain t test of five.
    assert crosses_second(0, 1e-300, 0.03) == pytest.approx(0.03, rel=1e-4)


def test_twice_the_cells_change_no_boundary_by_one_percent(monkeypatch):
    looks = tuple(range(2, 21))
    coarse = boundaries(looks, SPENDING)
    # The middle of each cell, as p grows linearly above 0.1 and by a factor below.
    inner = sequential._EDGES[:-1]
    middle = np.where(
        inner[1:] >= 0.1 - 1e-9, (inner[1:] + inner[:-1]) / 2, np.sqrt(inner[1:] * inner[:-1])
    )
    monkeypatch.setattr(
        sequential, "_EDGES", np.sort(np.concatenate([sequential._EDGES, middle]))[::-1]
    )
    monkeypatch.setattr(sequential, "_transition", sequential._transition.__wrapped__)
    fine = Boundaries(looks, SPENDING)
    for level in (0.5, 0.05, 0.05 / 9, 1e-4, 1e-6):
        for look in range(len(looks)):
            assert coarse.boundary(look, level) == pytest.approx(
                fine.boundary(look, level), rel=0.01
            )


# --- many seeds ---


def test_many_seeds_give_the_boundaries_of_rpact():
    """R package rpact, ``tests/testthat/test-f_design_group_sequential.R`` (design x3).

    ``getDesignInverseNormal(informationRates = c(0.3, 0.7, 1), alpha = 0.03, sided = 1,
    typeOfDesign = "asKD", gammaA = 2.2)`` has the critical values below. Half of a two-sided level
    of 0.06 is one-sided 0.03: hardly any path crosses on both sides.
    """
    published = [2.8594012, 2.2435708, 1.9735737]
    off = []
    for scale in (1, 2, 6):
        z = z_of(Boundaries((3 * scale, 7 * scale, 10 * scale), 2.2), 0.06)
        assert z[0] == pytest.approx(published[0], abs=1e-7)
        off.append(np.abs(z - published).max())
    assert off[0] > off[1] > off[2]
    assert off[2] < 0.01


def normal_spent(z, times):
    """Error that normal looks spend one after the other, by the multivariate normal law."""
    spent = []
    for k in range(1, len(z) + 1):
        covariance = np.sqrt(np.minimum.outer(times[:k], times[:k]))
        covariance = covariance / np.sqrt(np.maximum.outer(times[:k], times[:k]))
        inside = stats.multivariate_normal(np.zeros(k), covariance).cdf(
            z[:k], lower_limit=-np.array(z[:k])
        )
        spent.append(1 - inside)
    return np.array(spent)


def test_many_seeds_spend_what_normal_looks_spend():
    times = np.array(LOOKS) / 10
    z = z_of(Boundaries(tuple(6 * n for n in LOOKS), SPENDING), 0.05)
    np.testing.assert_allclose(normal_spent(z, times), 0.05 * times**2, rtol=0.035)


def test_ten_looks_have_the_sample_size_of_jennison_and_turnbull():
    """Ten equal looks, rho = 2, two-sided 5 %: 108.1 % of a fixed sample have 80 % power.

    With that sample, 106.6 % are expected without an effect, 76.2 % with it. The numbers are in the
    tests of the R package gsDesign (``test.JT.Power.symm``), after Jennison and Turnbull (2000).
    """
    looks = 6 * np.arange(1, 11)
    z = z_of(Boundaries(tuple(looks.tolist()), SPENDING), 0.05)
    information = 1.081 * (special.ndtri(0.975) + special.ndtri(0.8)) ** 2
    steps = np.random.default_rng(7).normal(size=(200_000, 10)) / math.sqrt(10)
    for effect, rejected, fraction in ((0.0, 0.05, 1.066), (math.sqrt(information), 0.8, 0.762)):
        score = np.cumsum(steps + effect / 10, axis=1) / np.sqrt(np.arange(1, 11) / 10)
        crossed = np.abs(score) >= z
        used = np.where(crossed.any(axis=1), crossed.argmax(axis=1) + 1, 10) / 10
        assert crossed.any(axis=1).mean() == pytest.approx(rejected, abs=0.008)
        assert 1.081 * used.mean() == pytest.approx(fraction, abs=0.008)


# --- levels ---


@pytest.mark.parametrize("looks", [(3, 5), LOOKS, (3, 5, 7, 10, 14, 20), tuple(range(2, 21))])
def test_boundaries_grow_with_the_level_and_are_inverted(looks):
    bounds = boundaries(looks, SPENDING)
    levels = np.geomspace(1e-12, 0.9, 60)
    for look in range(len(looks)):
        p = [bounds.boundary(look, level) for level in levels]
        assert (np.diff(p) > 0).all()
        assert all(0 < value <= level for value, level in zip(p, levels, strict=True))
        np.testing.assert_allclose([bounds.level(look, value) for value in p], levels, rtol=1e-9)
        assert bounds.level(look, 0.0) == 0.0
        assert bounds.level(look, 1.0) == 1.0


@pytest.mark.parametrize("looks", [LOOKS, (3, 5, 7, 10, 14, 20)])
def test_below_the_table_boundaries_are_proportional_to_the_level(looks):
    bounds = boundaries(looks, SPENDING)
    for look in range(len(looks)):
        ratio = bounds.boundary(look, 1e-7) / 1e-7
        assert bounds.boundary(look, 1e-10) / 1e-10 == pytest.approx(ratio, rel=1e-9)
        # The table itself has nearly this slope at its end.
        assert bounds.boundary(look, 1e-6) / 1e-6 == pytest.approx(ratio, rel=0.03)


def test_more_looks_lower_the_boundaries_of_the_others():
    plain, more = boundaries((5, 10), SPENDING), boundaries((3, 5, 7, 10), SPENDING)
    assert more.boundary(1, 0.05) < plain.boundary(0, 0.05)
    assert more.boundary(3, 0.05) < plain.boundary(1, 0.05)


def test_a_t_test_needs_two_seeds():
    with pytest.raises(ValueError, match=r"needs two seeds at its first look; got looks \(1, 3\)"):
        Boundaries((1, 3), SPENDING)
