"""Statistics over seeds: means, paired differences, power and the best rows.

Values are paired by seed: a seed fixes the initial weights and the order of the data of a row and
of its base alike. The tests check every function against a second implementation, and the error
rates of all steps together by simulation. This module knows nothing of studies: it takes numbers
and returns dataclasses.

A spread of exactly zero over a few seeds proves nothing: metrics with few possible values repeat by
chance. In this case an interval is ``None``, and the p value is that of the exact sign-flip test,
which needs no spread.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, optimize, special

CONFIDENCE = 0.95
"""Confidence of every interval: the usual one, which also fits tests at 5 %."""
ROUNDING = 1e-12
"""Standard deviations below this part of the largest value are rounding errors and count as 0.

Floats are exact to 1e-16 of a value. A sum of some thousand values stays well below 1e-12, and real
differences between seeds are far above it.
"""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Summary:
    """Values of one row over its seeds.

    Attributes:
        n: Number of seeds.
        mean: Mean over the seeds.
        sd: Sample standard deviation; ``None`` for one seed.
        low: Lower end of the t interval of the mean; ``None`` if the seeds show no spread.
        high: Upper end of the interval.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Paired:
    """A row minus its base, paired by seed.

    Attributes:
        n: Number of pairs.
        difference: Mean of the paired differences.
        sd: Sample standard deviation of the differences; ``None`` for one pair.
        low: Lower end of the t interval of the difference; ``None`` if the pairs show no spread.
        high: Upper end of the interval.
        p: P value of the two-sided paired t test, uncorrected; ``None`` for one pair. Without
            spread it is 1 if all differences are 0, else that of the exact sign-flip test, 2 / 2^n.
        effect_size: Cohen's d_z with Hedges' correction: the difference in standard deviations of
            the differences. ``None`` without spread, and for fewer than three pairs, for which no
            such correction exists.
    """

    n: int
    difference: float
    sd: float | None
    low: float | None
    high: float | None
    p: float | None
    effect_size: float | None


def summarise(values: Iterable[float], confidence: float = CONFIDENCE) -> Summary | None:
    """Compute mean, sample standard deviation and t interval; ``None`` for no values.

    >>> summarise([0.25, 0.75]).mean
    0.5
    >>> summarise([0.5])
    Summary(n=1, mean=0.5, sd=None, low=None, high=None)

    Raises:
        ValueError: A value is not finite.
    """
    array = finite(values)
    if len(array) == 0:
        return None
    mean, sd = float(array.mean()), _sd(array, float(np.abs(array).max()))
    if not sd:
        return Summary(len(array), mean, sd, None, None)
    half = _t(confidence, len(array) - 1) * sd / math.sqrt(len(array))
    return Summary(len(array), mean, sd, mean - half, mean + half)


def paired(
    row: Mapping[int, float], base: Mapping[int, float], confidence: float = CONFIDENCE
) -> Paired | None:
    """Compute the paired difference of ``row`` from ``base`` over their common keys.

    The result is ``None`` if they have no key in common.

    Raises:
        ValueError: A value is not finite.
    """
    common = sorted(row.keys() & base.keys())
    if not common:
        return None
    row_values, base_values = (
        finite(row[key] for key in common),
        finite(base[key] for key in common),
    )
    return one_sample(
        row_values - base_values,
        float(max(np.abs(row_values).max(), np.abs(base_values).max())),
        confidence,
    )


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Correct p values by Holm's method over all of ``p``.

    ``None`` stays ``None`` but counts as a member of the family. The family is the set of declared
    comparisons, not of those that have run so far: a row cannot lose its significance when other
    rows finish.
    """
    # Not multipletests of statsmodels: it collects garbage at every call, which takes 50 ms in a
    # process that holds a report. The tests use it as the second implementation.
    values = np.array([1.0 if value is None else value for value in p])
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(
        values[order] * (len(values) - np.arange(len(values)))
    ).clip(max=1.0)
    return [None if value is None else float(new) for value, new in zip(p, corrected, strict=True)]


def paired_power(effect: float, n: int, comparisons: int, significance: float) -> float:
    """Probability that ``n`` pairs show an effect.

    The test is the two-sided paired t test at ``significance / comparisons`` (Bonferroni). Holm's
    correction detects at least as much.

    Args:
        effect: Effect in standard deviations of the paired difference.
        n: Number of pairs.
        comparisons: Number of declared comparisons.
        significance: Family-wise error rate.

    Raises:
        ValueError: There are fewer than one comparison, or the significance is no probability.
    """
    _check_plan(comparisons, significance)
    if n < 2:
        return 0.0
    critical = float(special.stdtrit(n - 1, 1 - significance / comparisons / 2))
    shift = abs(effect) * math.sqrt(n)
    return _noncentral_t_tail(critical, shift, n - 1) + _noncentral_t_tail(critical, -shift, n - 1)


@lru_cache(maxsize=4096)
def detectable_effect(n: int, comparisons: int, significance: float, power: float) -> float:
    """Smallest effect that ``n`` pairs show with probability ``power``.

    The effect is in standard deviations of the paired difference. It is infinite for fewer than two
    pairs. See :func:`paired_power` for the test.

    >>> [round(detectable_effect(n, 9, 0.05, 0.8), 1) for n in (3, 5, 10)]
    [9.8, 3.1, 1.5]

    Raises:
        ValueError: The power is not between the significance and 1, or see :func:`paired_power`.
    """
    _check_plan(comparisons, significance, power)
    if n < 2:
        return math.inf

    def missing(effect: float) -> float:
        return paired_power(effect, n, comparisons, significance) - power

    high = 1.0
    while missing(high) < 0:
        high *= 2
    return float(optimize.brentq(missing, 0.0, high, xtol=1e-6))


def seeds_needed(
    effect: float, sd: float, comparisons: int, significance: float, power: float
) -> int:
    """Smallest number of seeds that shows ``effect`` with at least the probability ``power``.

    Args:
        effect: Difference to detect, in the unit of ``sd``.
        sd: Standard deviation of the paired differences.
        comparisons: Number of declared comparisons.
        significance: Family-wise error rate.
        power: Probability of detecting the effect.

    Raises:
        ValueError: The effect is zero, the standard deviation negative, or see
            :func:`detectable_effect`.
    """
    _check_plan(comparisons, significance, power)
    if not effect or not sd >= 0:
        raise ValueError(
            "Seeds can be counted for an effect other than 0 and a standard deviation of at least "
            f"0; got {effect} and {sd}."
        )
    size = abs(effect) / sd if sd else math.inf

    def enough(n: int) -> bool:
        return paired_power(size, n, comparisons, significance) >= power

    low, high = 1, 2
    while math.isfinite(size) and not enough(high):
        low, high = high, 2 * high
    return low + 1 + bisect_left(range(low + 1, high), True, key=enough)


def not_distinguishable(
    values: Mapping[str, Mapping[int, float]], higher_is_better: bool, significance: float
) -> set[str]:
    """Labels of the best row and of all rows not distinguishable from it.

    These rows are printed in bold. A row is distinguishable if a one-sided paired t test finds it
    worse than the best row. The test has Bonferroni's correction over all other rows, because any
    of them could have been the best by chance. The truly best row, and each row as good as it, is
    therefore in the set with probability ``1 - significance`` (subset selection, Gupta 1965). Rows
    with fewer than two pairs cannot be tested and are in the set; rows without values are not.
    """
    means = {
        label: float(finite(by_seed.values()).mean())
        for label, by_seed in values.items()
        if by_seed
    }
    if not means:
        return set()
    sign = 1 if higher_is_better else -1
    best = max(means, key=lambda label: sign * means[label])
    labels = {best}
    for label in means.keys() - labels:
        compared = paired(values[label], values[best])
        if compared is None or compared.p is None:
            labels.add(label)
            continue
        # The best row has the best mean over all its seeds; over the common seeds another row may
        # be ahead.
        p = compared.p / 2 if sign * compared.difference < 0 else 1 - compared.p / 2
        if p * (len(means) - 1) > significance:
            labels.add(label)
    return labels


def noise_floor(
    base: Iterable[float], base_again: Iterable[float], confidence: float = CONFIDENCE
) -> float | None:
    """Half width of the interval of a difference that only seeds cause.

    The interval is the t interval of base minus A/A row (the base again with other seeds),
    unpaired: t times the pooled standard deviation times sqrt(1 / n + 1 / m). Paired differences
    scatter at most as much, unless pairing increases the noise. The result is ``None`` if either
    row has fewer than two values.
    """
    first, second = finite(base), finite(base_again)
    if min(len(first), len(second)) < 2:
        return None
    df = len(first) + len(second) - 2
    pooled = (first.var(ddof=1) * (len(first) - 1) + second.var(ddof=1) * (len(second) - 1)) / df
    return _t(confidence, df) * math.sqrt(pooled * (1 / len(first) + 1 / len(second)))


def one_sample(differences: Floats, scale: float, confidence: float = CONFIDENCE) -> Paired:
    """Compute mean, interval and t test of differences.

    Args:
        differences: Paired differences.
        scale: Size of the values that were subtracted. A standard deviation that is a rounding
            error at this scale counts as 0.
        confidence: Probability that the interval covers.
    """
    n, mean, sd = len(differences), float(differences.mean()), _sd(differences, scale)
    if sd is None:
        return Paired(n, mean, None, None, None, None, None)
    if sd == 0:
        return Paired(
            n, mean, sd, None, None, 1.0 if abs(mean) <= ROUNDING * scale else 2.0 ** (1 - n), None
        )
    df, error = n - 1, sd / math.sqrt(n)
    half = _t(confidence, df) * error
    p = 2 * float(special.stdtr(df, -abs(mean) / error))
    correction = (
        math.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / math.sqrt(df / 2)
        if n > 2
        else None
    )
    effect_size = mean / sd * correction if correction is not None else None
    return Paired(n, mean, sd, mean - half, mean + half, p, effect_size)


def _sd(values: Floats, scale: float) -> float | None:
    if len(values) < 2:
        return None
    sd = float(values.std(ddof=1))
    return sd if sd > ROUNDING * scale else 0.0


def _t(confidence: float, df: int) -> float:
    return float(special.stdtrit(df, (1 + confidence) / 2))


def _noncentral_t_tail(critical: float, shift: float, df: int) -> float:
    """P(T > critical) for noncentral t, as an integral over the normal part.

    scipy's ``nct``, and statsmodels' ``TTestPower``, which uses it, fail for few pairs and many
    comparisons, the usual case of a study. They give NaN, or a power that is too large and hence a
    detectable effect that is too small: 8.9 instead of 9.8 for 3 pairs and 9 comparisons.
    """

    def density(z: float) -> float:
        ratio = (z + shift) / critical
        return float(math.exp(-z * z / 2) * special.chdtr(df, df * ratio * ratio))

    # Beyond 9 standard deviations the normal density is below 1e-17.
    low, high = max(-shift, -9.0), 9.0
    if low >= high:
        return 0.0
    # At this point chdtr rises, for many pairs like a step; quad splits the range there.
    step = min(max(critical - shift, low), high)
    area = integrate.quad(density, low, high, points=[step], limit=200)[0]
    return float(area / math.sqrt(2 * math.pi))


def _check_plan(comparisons: int, significance: float, power: float | None = None) -> None:
    if comparisons < 1 or not 0 < significance < 1:
        raise ValueError(
            "Expected at least one comparison and a significance between 0 and 1; "
            f"got {comparisons} and {significance}."
        )
    if power is not None and not significance < power < 1:
        raise ValueError(
            f"Expected a power between the significance, {significance}, and 1; got {power}."
        )


def finite(values: Iterable[float]) -> Floats:
    """Return ``values`` as an array.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    array = np.fromiter(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(
            f"Expected finite values; got {array.tolist()}. Leave out trials that have no value."
        )
    return array
