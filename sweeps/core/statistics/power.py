"""What a number of seeds can show: the same question before a study, with known noise, and after it, with its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sweeps.core.statistics.paired import detectable_effect, seeds_needed


@dataclass(frozen=True, slots=True)
class MetricPower:
    """What seeds can show of one metric.

    Attributes:
        sd: Standard deviation of a paired difference, in the metric's unit; ``None`` where it is
            not known.
        detectable: Smallest difference that is detected, in the metric's unit; ``None`` where
            ``sd`` is.
        seeds_needed: Seeds that detect the smallest effect that matters; ``None`` where ``sd`` is.
        underpowered: Whether ``detectable`` exceeds the smallest effect that matters, or is not
            known.
    """

    sd: float | None
    detectable: float | None
    seeds_needed: int | None
    underpowered: bool


@dataclass(frozen=True, slots=True)
class Power:
    """What seeds can show at all.

    Attributes:
        comparisons: Number of declared comparisons, the family of Holm's correction.
        n: Pairs of each comparison.
        detectable_sd: Smallest detectable difference in standard deviations of a paired difference;
            infinite below two pairs.
        metrics: By key, for the metrics with declared comparisons.
    """

    comparisons: int
    n: int
    detectable_sd: float
    metrics: Mapping[str, MetricPower]


@dataclass(frozen=True, slots=True)
class PowerGoal:
    """What a study asks of its seeds.

    Attributes:
        comparisons: Number of declared comparisons.
        significance: Probability of any false positive among them.
        power: Probability with which an effect is to be detected.
        smallest_effect: Smallest difference that matters, in the metric's unit.
    """

    comparisons: int
    significance: float
    power: float
    smallest_effect: float

    def detectable_sd(self, n: int) -> float:
        """Smallest effect that ``n`` pairs detect, in standard deviations; infinite without comparisons."""
        if not self.comparisons:
            return math.inf
        return detectable_effect(n, self.comparisons, self.significance, self.power)

    def detectable(self, n: int, sd: float | None) -> float | None:
        """Smallest difference that ``n`` pairs detect, in the unit of ``sd``; ``None`` where that is not known."""
        if sd is None:
            return None
        # Infinity times a noise of zero is not a number.
        return self.detectable_sd(n) * sd if n > 1 else math.inf

    def seeds_needed(self, effect: float, sd: float) -> int:
        """Seeds that detect ``effect``, in the unit of ``sd``."""
        return seeds_needed(effect, sd, self.comparisons, self.significance, self.power)

    def assess(self, n: int, sds: Mapping[str, float | None]) -> Power:
        """What ``n`` pairs can show.

        Args:
            n: Pairs of each comparison.
            sds: Standard deviation of a paired difference by metric; ``None`` where it is not
                known.
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
    """One standard deviation from those of several groups, each with its degrees of freedom; ``None`` of no group.

    >>> pooled_sd([(1, 3.0), (1, 1.0)])
    2.23606797749979
    """
    known = list(spreads)
    degrees = sum(df for df, _ in known)
    return math.sqrt(sum(df * sd**2 for df, sd in known) / degrees) if degrees else None
