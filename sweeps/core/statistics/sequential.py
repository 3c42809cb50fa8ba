"""Group-sequential t tests: exact boundaries for paired differences that are tested at looks.

A study tests after its first look, and adds seeds only where nothing is decided. Each look spends a
part of the error: after n_k of N seeds a test at level a has spent ``a * (n_k / N) ** spending``
(power family, Kim and DeMets 1987). The boundary of a look is the p value at which its part is
spent, given that no earlier look has crossed.

Under the null hypothesis with normal differences, the t statistics of all looks depend on no
parameter: only the direction of the vector of differences counts, which is uniform on the sphere.
The boundaries are therefore exact for any number of seeds (Jennison and Turnbull 1991). Let S be
the sum of n differences and Q their root sum of squares. Then r = S / (sqrt(n) Q) gives
t = sqrt(n - 1) r / sqrt(1 - r^2), and the next difference x changes it to

    r' = (sqrt(n) r + u) / sqrt((n + 1) (1 + u^2)),    u = x / Q,    sqrt(n) u ~ t(n).

The law of ``|r|`` is computed on a grid, one seed after the other. This module knows nothing of
studies.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import special

from sweeps.core.statistics.paired import Floats

# Edges of the grid, as two-sided p values: fine where boundaries lie, down to where none lies. With
# twice as many cells, no boundary of looks up to 20 seeds changes by 1 %.
_EDGES = np.concatenate([np.linspace(1.0, 0.1, 46)[:-1], np.geomspace(0.1, 1e-9, 161), [0.0]])
# Nodes and weights of the Gauss-Legendre rule with two nodes on [0, 1]: places in a cell from
# which its probability moves on.
_NODES = (0.5 - 0.5 / np.sqrt(3), 0.5 + 0.5 / np.sqrt(3))
# Levels at which the boundaries are computed; others are interpolated.
_LEVELS = np.geomspace(1e-7, 1.0, 141)


class Boundaries:
    """Boundaries of a two-sided t test that is repeated at looks, for every level.

    Args:
        looks: Numbers of seeds at the looks, ascending from at least 2; the last one is the cap.
        spending: Positive exponent of the error spending function. A larger one spends less at
            early looks.

    Raises:
        ValueError: The first look has fewer than two seeds.
    """

    def __init__(self, looks: Sequence[int], spending: float) -> None:
        if looks[0] < 2:
            raise ValueError(f"A t test needs two seeds at its first look; got looks {looks}.")
        self.looks = tuple(looks)
        parts = (np.array(looks) / looks[-1]) ** spending
        self._first_part = float(parts[0])
        # Boundary by level (rows) and look (columns).
        self._table = _table(self.looks, np.diff(parts, prepend=0.0))

    def boundary(self, look: int, level: float) -> float:
        """Return the p value at or below which the test at ``level`` crosses at a look.

        Args:
            look: Index of the look.
            level: Level of the test over all looks.
        """
        if look == 0:
            return level * self._first_part
        if level >= 1:
            return 1.0
        return float(np.exp(_line(np.log(level), np.log(_LEVELS), np.log(self._table[:, look]))))

    def level(self, look: int, p: float) -> float:
        """Return the smallest level at which ``p`` crosses at a look: the inverse of ``boundary``.

        It is the sequential p value of this look alone.
        """
        if look == 0:
            return min(p / self._first_part, 1.0)
        if p <= 0:
            return 0.0
        column = np.log(self._table[:, look])
        return float(min(np.exp(_line(np.log(p), column, np.log(_LEVELS))), 1.0))

    def lines(self) -> list[list[float]]:
        """List the computed levels, each with the boundaries of all looks."""
        table = np.column_stack([_LEVELS, self._table])
        return [[float(number) for number in line] for line in table]


@lru_cache(maxsize=16)
def boundaries(looks: tuple[int, ...], spending: float) -> Boundaries:
    """Return :class:`Boundaries`, computed once a process."""
    return Boundaries(looks, spending)


def _line(x: float, xs: Floats, ys: Floats) -> float:
    """Interpolate linearly; below ``xs`` with the slope 1, which boundaries have there."""
    return ys[0] + x - xs[0] if x < xs[0] else float(np.interp(x, xs, ys))


def _table(looks: tuple[int, ...], parts: Floats) -> Floats:
    """Compute the boundary of every level and look.

    Args:
        looks: Numbers of seeds.
        parts: Part of the level that each look spends.
    """
    cells = -np.diff(_EDGES)
    # Probability of each cell of |r| by level, of paths that have not crossed.
    mass = np.tile(cells, (len(_LEVELS), 1))
    table = np.empty((len(_LEVELS), len(looks)))
    for look, part in enumerate(parts):
        if look:
            for n in range(looks[look - 1], looks[look]):
                mass = mass @ _transition(n)
        table[:, look] = _spend(mass, part * _LEVELS)
    return table


def _spend(mass: Floats, spent: Floats) -> Floats:
    """Find the p value below which each row of ``mass`` has the probability ``spent``; remove it.

    ``mass`` is changed in place. Within a cell the density is constant.
    """
    # From the smallest p values upwards.
    tails = np.cumsum(mass[:, ::-1], axis=1)
    p_values = np.empty(len(mass))
    for row, (tail, part) in enumerate(zip(tails, spent, strict=True)):
        cell = min(int(np.searchsorted(tail, part)), mass.shape[1] - 1)
        place = mass.shape[1] - 1 - cell
        below = tail[cell - 1] if cell else 0.0
        share = min((part - below) / mass[row, place], 1.0) if mass[row, place] > 0 else 1.0
        low, high = _EDGES[place + 1], _EDGES[place]
        p_values[row] = low + share * (high - low)
        mass[row, place + 1 :] = 0.0
        mass[row, place] *= 1 - share
    return p_values


@lru_cache(maxsize=64)
def _transition(n: int) -> Floats:
    """Probability to move from each cell of |r| with n seeds to each cell with n + 1 seeds."""
    low, high = _EDGES[1:], _EDGES[:-1]
    edges = _correlation(_EDGES, n + 1)
    matrix = np.zeros((len(low), len(low)))
    for node in _NODES:
        start = _correlation(low + node * (high - low), n)[:, None]
        inside = _below(start, edges[None, :], n) - _below(start, -edges[None, :], n)
        matrix += np.diff(inside, axis=1) / len(_NODES)
    # The first edge is r = 0, where ``inside`` is 0, and the last one is r = 1.
    return matrix


def _correlation(p: Floats, n: int) -> Floats:
    """Convert two-sided p values of a t test with n values to |r|."""
    r = np.ones_like(p)
    t = -special.stdtrit(n - 1, p[p > 0] / 2)
    r[p > 0] = t / np.sqrt(n - 1 + t * t)
    return r


def _below(r: Floats, y: Floats, n: int) -> Floats:
    """Probability that the next r is at most ``y``, from ``r`` >= 0 with n values.

    With c = sqrt(n) r and Y = sqrt(n + 1) y, the next r is at most y where
    c + u <= Y sqrt(1 + u^2). The left side divided by the root rises from -1 to sqrt(1 + c^2) at
    u = 1 / c, and falls to 1 from there.
    """
    c, bound = np.sqrt(n) * r, np.sqrt(n + 1) * y
    root = bound * np.sqrt(np.maximum(c * c + 1 - bound * bound, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        # Where it rises through Y; the two forms are equal, and each is exact for one sign of Y.
        rises = np.where(
            bound >= 0,
            (bound * bound - c * c) / (root + c),
            (root - c) / (1 - bound * bound),
        )
        falls = (c + root) / (bound * bound - 1)
    highest = np.sqrt(1 + c * c)
    probability = np.where(bound >= highest, 1.0, 0.0)
    inside = (bound > -1) & (bound < highest)
    probability[inside] = special.stdtr(n, np.sqrt(n) * rises[inside])
    both = inside & (bound > 1)
    probability[both] += special.stdtr(n, -np.sqrt(n) * falls[both])
    return probability
