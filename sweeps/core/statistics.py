"""Statistics of ablations: what seeds and images can tell, and what they cannot.

Values are paired by seed, since a seed fixes the initial weights and the order of the data of a row and of its base
alike. Every function is checked in the tests against a second implementation, and the error rates of the whole chain by
simulation. Nothing here knows of studies: numbers in, dataclasses out.

A spread of exactly zero over a handful of seeds is no certainty: metrics that take few values repeat themselves. There,
an interval is ``None`` and the p value is that of the exact sign-flip test, which needs no spread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, optimize, sparse, special

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
ROUNDING = 1e-12
"""Standard deviations below this part of the largest value are rounding: differences of equal numbers."""
VALUE, SEED = "value", "seed"
"""Columns of a table of observations; its other columns are factors."""
CHUNK = 256
"""Resamples of images that are counted at once, which bounds the memory."""

Floats = NDArray[np.float64]
Counts = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Summary:
    """Values of one row over its seeds.

    Attributes:
        n: Number of seeds.
        mean: Their mean.
        sd: Sample standard deviation; ``None`` for one seed.
        low: Lower end of the t interval of the mean; ``None`` where the seeds show no spread.
        high: Upper end.
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
        difference: Mean of the differences.
        sd: Their sample standard deviation; ``None`` for one pair.
        low: Lower end of the t interval of the difference; ``None`` where the pairs show no spread.
        high: Upper end.
        p: Two-sided paired t test, uncorrected; ``None`` for one pair. Without spread it is 1 where nothing differs,
            else that of the exact sign-flip test, 2 / 2^n.
        effect_size: Cohen's d_z with Hedges' correction: the difference in standard deviations of the differences.
            ``None`` for fewer than three pairs, where no such correction exists, and without spread.
    """

    n: int
    difference: float
    sd: float | None
    low: float | None
    high: float | None
    p: float | None
    effect_size: float | None


@dataclass(frozen=True, slots=True)
class ImageInterval:
    """A difference with the interval that another draw of test images would give, the trained networks being fixed."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Term:
    """A row of an analysis of variance.

    Attributes:
        factors: The factor, or the factors of an interaction; ``("seed",)`` for the block.
        df: Degrees of freedom.
        sum_squares: What the term explains beyond the others (type II).
        f: F statistic.
        p: Its p value.
        partial_eta_squared: Share of what the term and the noise explain together that is the term's.
        aliases: Interactions that were left out since these rows do not tell them from this one: each of them, too, may
            be what is seen here.
    """

    factors: tuple[str, ...]
    df: int
    sum_squares: float
    f: float
    p: float
    partial_eta_squared: float
    aliases: tuple[tuple[str, ...], ...] = ()

    @property
    def name(self) -> str:
        """What it is called in print."""
        return " x ".join(self.factors)


@dataclass(frozen=True, slots=True)
class Anova:
    """An analysis of variance with seeds as blocks.

    Attributes:
        terms: Seeds, factors, interactions of two factors; none where the noise cannot be estimated, which a note says.
        residual_df: Degrees of freedom of the noise.
        notes: What was left out and why, in sentences.
    """

    terms: tuple[Term, ...]
    residual_df: int
    notes: tuple[str, ...]

    @property
    def interactions(self) -> tuple[Term, ...]:
        """The terms of two factors."""
        return tuple(term for term in self.terms if len(term.factors) > 1)

    def dependencies(self, significance: float) -> tuple[str, ...]:
        """A warning for each interaction that is significant after Holm's correction over all of them."""
        corrected = holm([term.p for term in self.interactions])
        return tuple(
            f"{_dependent(term)} (interaction: F({term.df}, "
            f"{self.residual_df}) = {term.f:.2f}, p = {p:.2g} after Holm): a row that varies one of them alone "
            "holds only at the value that the other has there."
            for term, p in zip(self.interactions, corrected, strict=True)
            if p is not None and p <= significance
        )


@dataclass(frozen=True, slots=True)
class Effect:
    """An effect in a two-level design.

    Attributes:
        factors: The factor, or the two factors of an interaction.
        levels: For each factor its low and its high level, in the order of first appearance.
        estimate: Mean at high minus mean at low; of an interaction half the difference between the effects of the one
            factor at the two levels of the other. Interval and test are over seeds.
        aliases: Factors and interactions of two that this design does not tell from it.
    """

    factors: tuple[str, ...]
    levels: tuple[tuple[object, object], ...]
    estimate: Paired
    aliases: tuple[tuple[str, ...], ...]

    @property
    def name(self) -> str:
        """What it is called in print."""
        return " x ".join(self.factors)


def summarise(values: Iterable[float], confidence: float = CONFIDENCE) -> Summary | None:
    """Mean, sample standard deviation and t interval; ``None`` of no values.

    >>> summarise([0.25, 0.75]).mean
    0.5
    >>> summarise([0.5])
    Summary(n=1, mean=0.5, sd=None, low=None, high=None)

    Raises:
        ValueError: A value is not finite.
    """
    array = _finite(values)
    if len(array) == 0:
        return None
    mean, sd = float(array.mean()), _sd(array, float(np.abs(array).max()))
    if not sd:
        return Summary(len(array), mean, sd, None, None)
    half = _t(confidence, len(array) - 1) * sd / math.sqrt(len(array))
    return Summary(len(array), mean, sd, mean - half, mean + half)


def paired(row: Mapping[int, float], base: Mapping[int, float], confidence: float = CONFIDENCE) -> Paired | None:
    """Difference of ``row`` from ``base`` over the keys that both have; ``None`` where there is none.

    Raises:
        ValueError: A value is not finite.
    """
    common = sorted(row.keys() & base.keys())
    if not common:
        return None
    ours, theirs = _finite(row[key] for key in common), _finite(base[key] for key in common)
    return _one_sample(ours - theirs, float(max(np.abs(ours).max(), np.abs(theirs).max())), confidence)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """P values after Holm's correction over all of ``p``.

    ``None`` stays ``None`` yet counts: the family is what was declared, not what has run so far, so that a table that
    fills in loses no significance that it once showed for want of a row.
    """
    # statsmodels' multipletests collects garbage at every call: 50 ms in a process that holds a report. It is the
    # second implementation in the tests.
    values = np.array([1.0 if value is None else value for value in p])
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(values[order] * (len(values) - np.arange(len(values)))).clip(max=1.0)
    return [None if value is None else float(new) for value, new in zip(p, corrected, strict=True)]


def paired_power(effect: float, n: int, comparisons: int, significance: float) -> float:
    """Probability that ``n`` pairs show ``effect``, in standard deviations of the paired difference.

    By Bonferroni: the two-sided paired t test at ``significance / comparisons``. Holm's finds at least as much.

    Raises:
        ValueError: There are fewer than one comparison, or the significance is no probability.
    """
    _check_plan(comparisons, significance)
    if n < 2:
        return 0.0
    critical = float(special.stdtrit(n - 1, 1 - significance / comparisons / 2))
    shift = abs(effect) * math.sqrt(n)
    return _beyond(critical, shift, n - 1) + _beyond(critical, -shift, n - 1)


@lru_cache(maxsize=4096)
def detectable_effect(n: int, comparisons: int, significance: float, power: float) -> float:
    """Smallest effect that ``n`` pairs show with probability ``power``.

    In standard deviations of the paired difference. Infinite for fewer than two pairs. See :func:`paired_power`.

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


def seeds_needed(effect: float, sd: float, comparisons: int, significance: float, power: float) -> int:
    """Seeds that show ``effect`` with probability ``power``; ``sd`` is that of the paired differences, in its unit.

    Raises:
        ValueError: The effect is zero, the standard deviation negative, or see :func:`detectable_effect`.
    """
    _check_plan(comparisons, significance, power)
    if not effect or not sd >= 0:
        raise ValueError(
            f"Seeds can be counted for an effect other than 0 and a standard deviation of at least 0; got {effect} and "
            f"{sd}."
        )
    size = abs(effect) / sd if sd else math.inf

    def enough(n: int) -> bool:
        return paired_power(size, n, comparisons, significance) >= power

    few, many = 1, 2
    while math.isfinite(size) and not enough(many):
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


def not_distinguishable(
    values: Mapping[str, Mapping[int, float]], higher_is_better: bool, significance: float
) -> set[str]:
    """Labels of the best row of a column and of every row that is not distinguishable from it: those in bold.

    A row is distinguishable where it is worse than the best by a one-sided paired t test, after Bonferroni's correction
    over all other rows, since any of them could have come out as the best. So the truly best row, and each that is as
    good, is in the set with probability ``1 - significance`` (subset selection, Gupta 1965). Rows that cannot be
    tested, for want of a second pair, are in the set; rows without values are not.
    """
    means = {label: float(_finite(by_seed.values()).mean()) for label, by_seed in values.items() if by_seed}
    if not means:
        return set()
    sign = 1 if higher_is_better else -1
    best = max(means, key=lambda label: sign * means[label])
    kept = {best}
    for label in means.keys() - kept:
        compared = paired(values[label], values[best])
        if compared is None or compared.p is None:
            kept.add(label)
            continue
        # Over the pairs that there are, a row may be ahead of one with the better mean.
        p = compared.p / 2 if sign * compared.difference < 0 else 1 - compared.p / 2
        if p * (len(means) - 1) > significance:
            kept.add(label)
    return kept


def noise_floor(base: Iterable[float], again: Iterable[float], confidence: float = CONFIDENCE) -> float | None:
    """Half the width of the interval that the difference between two means has where nothing differs but the seeds.

    From the base and the base again with other seeds (A/A), so unpaired: t times the pooled standard deviation times
    sqrt(1 / n + 1 / m). Paired differences of rows scatter at most as much, as long as pairing does not hurt. ``None``
    where either has fewer than two values.
    """
    first, second = _finite(base), _finite(again)
    if min(len(first), len(second)) < 2:
        return None
    df = len(first) + len(second) - 2
    pooled = (first.var(ddof=1) * (len(first) - 1) + second.var(ddof=1) * (len(second) - 1)) / df
    return _t(confidence, df) * math.sqrt(pooled * (1 / len(first) + 1 / len(second)))


def resampled_iou(confusions: Counts, resamples: int = 2000, seed: int = 0) -> Floats:
    """IoU per class on resampled images: ``[seeds, 1 + resamples, classes]``, the images themselves first.

    NaN where no image of a resample has the class. Arrays over the same number of images get the same resamples, all
    their seeds too, which is what pairs them.

    Args:
        confusions: ``[seeds, images, classes, classes]``, rows are ground truth.
        resamples: Draws of as many images as there are, with replacement.
        seed: Of the draws.

    Raises:
        ValueError: The shape is another, or there is no image.
    """
    if confusions.ndim != 4 or confusions.shape[2] != confusions.shape[3] or 0 in confusions.shape:
        raise ValueError(
            "Expected confusion matrices of images, [seeds, images, classes, classes] with nothing empty; got "
            f"{list(confusions.shape)}."
        )
    num_seeds, num_images, num_classes, _ = confusions.shape
    # An image has few classes, so most of its matrix is zero: sparse products are many times faster.
    counts = [sparse.csr_array(of_seed.reshape(num_images, -1).astype(np.float64)).T.tocsr() for of_seed in confusions]
    iou = np.empty((num_seeds, 1 + resamples, num_classes))
    generator = np.random.default_rng(seed)
    for start in range(0, 1 + resamples, CHUNK):
        size = min(CHUNK, 1 + resamples - start)
        weights = generator.multinomial(num_images, np.full(num_images, 1 / num_images), size).astype(np.float64)
        if start == 0:
            weights[0] = 1.0
        for index, of_seed in enumerate(counts):
            total = (of_seed @ weights.T).reshape(num_classes, num_classes, size)
            iou[index, start : start + size] = _iou(np.moveaxis(total, 2, 0))
    return iou


def difference_interval(row: Floats, base: Floats, confidence: float = CONFIDENCE) -> ImageInterval:
    """Interval of the difference in mIoU, mean over seeds, of a row and its base, both from :func:`resampled_iou`.

    Raises:
        ValueError: The two are of different shapes.
    """
    _check_pair(row, base)
    interval = _interval((_mean_iou(row) - _mean_iou(base)).mean(axis=0), confidence)
    if interval is None:
        raise ValueError("No image has a ground truth pixel, so there is no mIoU. Check the confusion matrices.")
    return interval


def class_difference_intervals(
    row: Floats, base: Floats, confidence: float = CONFIDENCE
) -> tuple[ImageInterval | None, ...]:
    """As :func:`difference_interval`, for each class; ``None`` for one that the ground truth does not contain."""
    _check_pair(row, base)
    return tuple(_interval(of_class, confidence) for of_class in (row - base).mean(axis=0).T)


def image_interval(
    row: Counts, base: Counts, resamples: int = 2000, seed: int = 0, confidence: float = CONFIDENCE
) -> ImageInterval:
    """Paired bootstrap over images of the difference in mIoU, mean over seeds: test-set noise, not training noise.

    The percentile interval. Both arrays are ``[seeds, images, classes, classes]``, over the same images in the same
    order. Of many rows with one base, call :func:`resampled_iou` once for each row.

    Raises:
        ValueError: The shapes differ, or are others.
    """
    _check_pair(row, base)
    return difference_interval(resampled_iou(row, resamples, seed), resampled_iou(base, resamples, seed), confidence)


def class_image_intervals(
    row: Counts, base: Counts, resamples: int = 2000, seed: int = 0, confidence: float = CONFIDENCE
) -> tuple[ImageInterval | None, ...]:
    """As :func:`image_interval`, for the IoU of each class; ``None`` for one that the ground truth does not contain."""
    _check_pair(row, base)
    return class_difference_intervals(
        resampled_iou(row, resamples, seed), resampled_iou(base, resamples, seed), confidence
    )


def anova(table: pd.DataFrame) -> Anova:
    """Analysis of variance (type II) of the column ``value`` over seeds as blocks, factors, and pairs of factors.

    Interactions enter one by one as far as the rows of the design tell them from what entered before, and all of them
    only where that leaves at least one degree of freedom for the noise.

    Args:
        table: One row a trial: columns ``value``, ``seed``, and one for each factor.

    Raises:
        ValueError: A column is missing, a value is not finite, or no factor has two levels.
    """
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    factors = _factors(table)
    names = {SEED: (SEED,)} | {f"f{index}": (factor,) for index, factor in enumerate(factors)}
    data = pd.DataFrame({short: _codes(table[long[0]]) for short, long in names.items()})
    data[VALUE] = _finite(table[VALUE])
    short_names = [name for name in names if data[name].nunique() > 1]
    notes: list[str] = []
    columns = np.ones((len(data), 1))
    kept: list[tuple[str, ...]] = []
    left_out: list[tuple[str, ...]] = []
    candidates: list[tuple[str, ...]] = [(name,) for name in short_names]
    candidates += list(combinations([name for name in short_names if name != SEED], 2))
    for term in candidates:
        label = " x ".join(names[name][0] for name in term)
        own = _contrasts(data, term)
        wider = np.hstack([columns, own])
        if np.linalg.matrix_rank(wider) < np.linalg.matrix_rank(columns) + own.shape[1]:
            notes.append(f"{label} is left out: these rows cannot tell it from other terms.")
            left_out.append(term)
            continue
        columns = wider
        kept.append(term)
    if columns.shape[1] >= len(data) and any(len(term) > 1 for term in kept):
        kept = [term for term in kept if len(term) == 1]
        notes.append("Interactions are left out, since without a second seed they are the only measure of the noise.")
        columns = np.hstack([np.ones((len(data), 1)), *(_contrasts(data, term) for term in kept)])
    residual_df = len(data) - columns.shape[1]
    in_formula = {term: ":".join(f"C({name}, Sum)" for name in term) for term in kept}
    fit = ols(f"{VALUE} ~ {' + '.join(in_formula.values())}", data).fit()
    noise = float(fit.ssr)
    if residual_df < 1 or noise <= (ROUNDING * float(data[VALUE].abs().max())) ** 2 * len(data):
        notes.append("The noise cannot be estimated from these trials, so nothing can be tested. Add seeds.")
        return Anova((), residual_df, tuple(notes))
    result = anova_lm(fit, typ=2)
    return Anova(
        tuple(
            _term(
                tuple(names[name][0] for name in term),
                result.loc[written],
                noise,
                tuple(tuple(names[name][0] for name in other) for other in left_out if _mixed(data, term, other)),
            )
            for term, written in in_formula.items()
        ),
        residual_df,
        tuple(notes),
    )


def two_level_effects(table: pd.DataFrame) -> tuple[Effect, ...]:
    """Effects and interactions of two factors in a two-level design, full or a fraction of it, with their aliases.

    Each seed gives one estimate of an effect; the interval and the test are over seeds. Seeds that lack a row of the
    design do not count. Of terms that alias each other all are listed, each with the others as aliases.

    Args:
        table: As for :func:`anova`; every factor has two levels.

    Raises:
        ValueError: A column is missing, a value is not finite, a factor has another number of levels, a seed has a row
            twice, or no seed has all rows.
    """
    factors = _factors(table)
    levels = {factor: tuple(table[factor].drop_duplicates()) for factor in factors}
    for factor, found in levels.items():
        if len(found) != 2:
            raise ValueError(f"Effects are of factors with two levels; {factor} has {len(found)}: {list(found)}.")
    signs = np.stack([np.where(table[factor] == levels[factor][1], 1, -1) for factor in factors], axis=1)
    by_seed: dict[int, dict[tuple[int, ...], float]] = {}
    values = _finite(table[VALUE])
    for seed, run, value in zip(table[SEED], map(tuple, signs.tolist()), values, strict=True):
        if run in by_seed.setdefault(seed, {}):
            raise ValueError(f"The seed {seed} has two values for one combination of levels; expected one.")
        by_seed[seed][run] = float(value)
    runs = sorted({run for observed in by_seed.values() for run in observed})
    complete = [
        np.array([observed[run] for run in runs]) for observed in by_seed.values() if len(observed) == len(runs)
    ]
    if not complete:
        raise ValueError(f"No seed has all {len(runs)} rows of the design, so no effect can be computed. Run the rest.")
    design = np.array(runs)
    terms: dict[tuple[str, ...], NDArray[np.int64]] = {
        tuple(factors[index] for index in term): design[:, term].prod(axis=1)
        for order in (1, 2)
        for term in combinations(range(len(factors)), order)
    }
    return tuple(
        Effect(
            term,
            tuple((levels[factor][0], levels[factor][1]) for factor in term),
            _contrast(complete, column),
            tuple(other for other, its in terms.items() if other != term and _entangled(its, column)),
        )
        for term, column in terms.items()
        if len(set(column.tolist())) == 2
    )


def _entangled(first: NDArray[np.int64], second: NDArray[np.int64]) -> bool:
    """Whether two columns of signs are correlated: not only in full, as in a regular fraction."""
    return bool(len(first) * (first @ second) != first.sum() * second.sum())


def _contrast(complete: Sequence[Floats], column: NDArray[np.int64]) -> Paired:
    values = np.array([run[column > 0].mean() - run[column < 0].mean() for run in complete])
    return _one_sample(values, float(max(np.abs(run).max() for run in complete)), CONFIDENCE)


def _one_sample(differences: Floats, scale: float, confidence: float) -> Paired:
    n, mean, sd = len(differences), float(differences.mean()), _sd(differences, scale)
    if sd is None:
        return Paired(n, mean, None, None, None, None, None)
    if sd == 0:
        return Paired(n, mean, sd, None, None, 1.0 if abs(mean) <= ROUNDING * scale else 2.0 ** (1 - n), None)
    df, error = n - 1, sd / math.sqrt(n)
    half = _t(confidence, df) * error
    p = 2 * float(special.stdtr(df, -abs(mean) / error))
    correction = (
        math.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / math.sqrt(df / 2) if n > 2 else None
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


def _beyond(critical: float, shift: float, df: int) -> float:
    """P(T > critical) for noncentral t, as an integral over the normal part.

    scipy's ``nct``, and statsmodels' ``TTestPower`` on it, give NaN or values too large for few pairs and many
    comparisons (8.9 instead of 9.8 for 3 and 9), which are the case here.
    """

    def density(z: float) -> float:
        ratio = (z + shift) / critical
        return float(math.exp(-z * z / 2) * special.chdtr(df, df * ratio * ratio))

    low, high = max(-shift, -9.0), 9.0
    if low >= high:
        return 0.0
    step = min(max(critical - shift, low), high)
    area = integrate.quad(density, low, high, points=[step], limit=200)[0]
    return float(area / math.sqrt(2 * math.pi))


def _check_plan(comparisons: int, significance: float, power: float | None = None) -> None:
    if comparisons < 1 or not 0 < significance < 1:
        raise ValueError(
            f"Expected at least one comparison and a significance between 0 and 1; got {comparisons} and "
            f"{significance}."
        )
    if power is not None and not significance < power < 1:
        raise ValueError(f"Expected a power between the significance, {significance}, and 1; got {power}.")


def _iou(matrices: Floats) -> Floats:
    right = np.diagonal(matrices, axis1=-2, axis2=-1)
    true, predicted = matrices.sum(-1), matrices.sum(-2)
    union = true + predicted - right
    iou: Floats = np.divide(right, union, out=np.full_like(union, np.nan), where=true > 0)
    return iou


def _mean_iou(iou: Floats) -> Floats:
    present = ~np.isnan(iou)
    count = present.sum(axis=-1)
    total = np.where(present, iou, 0.0).sum(axis=-1)
    mean: Floats = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return mean


def _check_pair(row: NDArray[Any], base: NDArray[Any]) -> None:
    if row.shape != base.shape:
        raise ValueError(
            f"A row and its base are compared over the same seeds, images and classes; got {list(row.shape)} and "
            f"{list(base.shape)}."
        )


def _interval(differences: Floats, confidence: float) -> ImageInterval | None:
    if math.isnan(differences[0]):
        return None
    low, high = np.nanquantile(differences[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    return ImageInterval(float(differences[0]), float(low), float(high))


def _dependent(term: Term) -> str:
    pairs = [f"that of {one} on {other}" for one, other in term.aliases]
    depends = f"The effect of {term.factors[0]} depends on {term.factors[1]}"
    return f"{depends}, or {', or '.join(pairs)}: these rows cannot tell which" if pairs else depends


def _mixed(data: pd.DataFrame, term: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two interactions are correlated over these rows, beyond what their factors explain one by one."""
    if min(len(term), len(other)) < 2:
        return False
    mains = dict.fromkeys((*term, *other))
    known = np.hstack([np.ones((len(data), 1)), *(_contrasts(data, (name,)) for name in mains)])

    def rest(columns: Floats) -> Floats:
        fitted: Floats = known @ np.linalg.lstsq(known, columns, rcond=None)[0]
        return columns - fitted

    return bool(np.abs(rest(_contrasts(data, term)).T @ rest(_contrasts(data, other))).max() > 1e-6)


def _term(factors: tuple[str, ...], row: pd.Series[Any], noise: float, aliases: tuple[tuple[str, ...], ...]) -> Term:
    explained = float(row["sum_sq"])
    return Term(
        factors,
        round(float(row["df"])),
        explained,
        float(row["F"]),
        float(row["PR(>F)"]),
        explained / (explained + noise),
        aliases,
    )


def _factors(table: pd.DataFrame) -> list[str]:
    if missing := {VALUE, SEED} - set(table.columns):
        raise ValueError(f"The table lacks the columns {sorted(missing)}; it has {list(table.columns)}.")
    factors = [str(column) for column in table.columns if column not in (VALUE, SEED)]
    if not any(table[factor].nunique(dropna=False) > 1 for factor in factors):
        raise ValueError(f"No factor has two levels, so nothing can be compared; the factors are {factors}.")
    return factors


def _codes(column: pd.Series[Any]) -> NDArray[np.intp]:
    import pandas as pd

    return pd.factorize(column, use_na_sentinel=False)[0]


def _contrasts(data: pd.DataFrame, term: tuple[str, ...]) -> Floats:
    """Columns of the term in the design matrix, every level against the last."""
    product = np.ones((len(data), 1))
    for name in term:
        codes = data[name].to_numpy()
        last = codes.max()
        own = (codes[:, None] == np.arange(last)).astype(np.float64) - (codes[:, None] == last)
        product = (product[:, :, None] * own[:, None, :]).reshape(len(data), -1)
    return product


def _finite(values: Iterable[float]) -> Floats:
    array = np.fromiter(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"Expected finite values; got {array.tolist()}. Leave out trials that have no value.")
    return array
