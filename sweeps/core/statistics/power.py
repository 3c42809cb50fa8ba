"""Power: the differences that a number of seeds can detect.

A plan uses the noise that earlier trials showed; a report uses the noise of its own study.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sweeps.core.statistics.paired import detectable_effect, seeds_needed


@dataclass(frozen=True, slots=True)
class MetricPower:
    """Power of one metric.

    Attributes:
        sd: Standard deviation of a paired difference, in the metric's unit; ``None`` if unknown.
        detectable: Smallest detectable difference, in the metric's unit; ``None`` if ``sd`` is.
        seeds_needed: Number of seeds that detect the smallest effect that matters; ``None`` if
            ``sd`` is.
        underpowered: Whether ``detectable`` exceeds the smallest effect that matters, or is
            unknown.
    """

    sd: float | None
    detectable: float | None
    seeds_needed: int | None
    underpowered: bool


@dataclass(frozen=True, slots=True)
class Power:
    """Power of a study.

    Attributes:
        comparisons: Number of declared comparisons, the family of Holm's correction.
        n: Number of pairs of each comparison.
        detectable_sd: Smallest detectable difference in standard deviations of a paired difference;
            infinite below two pairs.
        metrics: Power by metric key, for the metrics with declared comparisons.
    """

    comparisons: int
    n: int
    detectable_sd: float
    metrics: Mapping[str, MetricPower]


@dataclass(frozen=True, slots=True)
class PowerGoal:
    """Requirements of a study on the power of its comparisons.

    Attributes:
        comparisons: Number of declared comparisons.
        significance: Family-wise error rate: probability of any false positive among them.
        power: Probability with which an effect is to be detected.
        smallest_effect: Smallest difference that matters, in the metric's unit.
    """

    comparisons: int
    significance: float
    power: float
    smallest_effect: float

    def detectable_sd(self, n: int) -> float:
        """Smallest effect that ``n`` pairs detect, in standard deviations of a paired difference.

        It is infinite without comparisons.
        """
        if not self.comparisons:
            return math.inf
        return detectable_effect(n, self.comparisons, self.significance, self.power)

    def detectable(self, n: int, sd: float | None) -> float | None:
        """Smallest difference that ``n`` pairs detect, in the unit of ``sd``; or ``None``."""
        if sd is None:
            return None
        # Without two pairs the detectable effect is infinite, and infinity times an sd of 0 is NaN.
        return self.detectable_sd(n) * sd if n > 1 else math.inf

    def seeds_needed(self, effect: float, sd: float) -> int:
        """Number of seeds that detect ``effect``, in the unit of ``sd``."""
        return seeds_needed(effect, sd, self.comparisons, self.significance, self.power)

    def assess(self, n: int, sds: Mapping[str, float | None]) -> Power:
        """Compute the power of ``n`` pairs.

        Args:
            n: Number of pairs of each comparison.
            sds: Standard deviation of a paired difference by metric; ``None`` if unknown.
        """
        return Power(
            self.comparisons,
            n,
            self.detectable_sd(n),
            {key: self._of(n, sd) for key, sd in sds.items()},
        )

    def _of(self, n: int, sd: float | None) -> MetricPower:
        detectable = self.detectable(n, sd)
        return MetricPower(
            sd=sd,
            detectable=detectable,
            seeds_needed=None if sd is None else self.seeds_needed(self.smallest_effect, sd),
            underpowered=detectable is None or detectable > self.smallest_effect,
        )


def pooled_sd(spreads: Iterable[tuple[int, float]]) -> float | None:
    """Pool standard deviations of groups, given as (degrees of freedom, standard deviation).

    The result is ``None`` without groups.

    >>> pooled_sd([(1, 3.0), (1, 1.0)])
    2.23606797749979
    """
    groups = list(spreads)
    degrees = sum(df for df, _ in groups)
    return math.sqrt(sum(df * sd**2 for df, sd in groups) / degrees) if degrees else None
