"""Analysis of variance, and effects of two-level designs: which factors act, alone or together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sweeps.core.statistics.paired import ROUNDING, Floats, Paired, finite, holm, one_sample

if TYPE_CHECKING:
    import pandas as pd

VALUE, SEED = "value", "seed"
"""Columns of a table of observations. All other columns are factors."""


@dataclass(frozen=True, slots=True)
class AnovaTerm:
    """A row of an analysis of variance.

    Attributes:
        factors: The factor, or the factors of an interaction; ``("seed",)`` for the seeds.
        df: Degrees of freedom.
        f: F statistic of the variation that the term explains beyond the other terms (type II).
        p: P value of the F statistic.
        partial_eta_squared: Share of the term in the variation that term and noise explain
            together.
        aliases: Interactions that were left out because these rows do not distinguish them from
            this term. The effect of this term may be the effect of any of them.
    """

    factors: tuple[str, ...]
    df: int
    f: float
    p: float
    partial_eta_squared: float
    aliases: tuple[tuple[str, ...], ...] = ()

    @property
    def name(self) -> str:
        """Name in reports."""
        return " x ".join(self.factors)


@dataclass(frozen=True, slots=True)
class Anova:
    """An analysis of variance with the seeds as blocks.

    Attributes:
        terms: Seeds, factors and interactions of two factors; empty if the noise cannot be
            estimated, which a note says.
        residual_df: Degrees of freedom of the noise.
        notes: Terms that were left out and the reasons, as sentences.
    """

    terms: tuple[AnovaTerm, ...]
    residual_df: int
    notes: tuple[str, ...]

    @property
    def interactions(self) -> tuple[AnovaTerm, ...]:
        """Terms of two factors."""
        return tuple(term for term in self.terms if len(term.factors) > 1)

    def dependencies(self, significance: float) -> tuple[str, ...]:
        """Write a warning for each interaction that is significant after Holm's correction."""
        corrected = holm([term.p for term in self.interactions])
        return tuple(
            f"{_dependency_text(term)} (interaction: F({term.df}, "
            f"{self.residual_df}) = {term.f:.2f}, p = {p:.2g} after Holm): a row that varies one "
            "of them alone holds only at the value that the other has there."
            for term, p in zip(self.interactions, corrected, strict=True)
            if p is not None and p <= significance
        )


@dataclass(frozen=True, slots=True)
class Effect:
    """An effect in a two-level design.

    Attributes:
        factors: The factor, or the two factors of an interaction.
        levels: Low and high level of each factor, in the order of first appearance.
        estimate: Mean at the high level minus mean at the low level. For an interaction: half the
            difference between the effects of one factor at the two levels of the other. The
            interval and the test are over seeds.
        aliases: Factors and interactions of two factors that this design does not distinguish from
            the effect.
    """

    factors: tuple[str, ...]
    levels: tuple[tuple[object, object], ...]
    estimate: Paired
    aliases: tuple[tuple[str, ...], ...]


def anova(table: pd.DataFrame) -> Anova:
    """Compute a type II analysis of variance of the column ``value``.

    The terms are seeds (as blocks), factors, and pairs of factors. An interaction enters if the
    rows of the design distinguish it from the terms before it. Interactions enter only if at least
    one degree of freedom remains for the noise.

    Args:
        table: One row for each trial, with the columns ``value``, ``seed`` and one for each factor.

    Raises:
        ValueError: A column is missing, a value is not finite, or no factor has two levels.
    """
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    # The observations: codes of the levels, and column names that a formula can hold.
    factors = _factors(table)
    names = {SEED: (SEED,)} | {f"f{index}": (factor,) for index, factor in enumerate(factors)}
    data = pd.DataFrame(
        {short: table[long[0]].factorize(use_na_sentinel=False)[0] for short, long in names.items()}
    )
    data[VALUE] = finite(table[VALUE])
    short_names = [name for name in names if data[name].nunique() > 1]
    notes: list[str] = []

    # The terms: seeds and factors, then pairs of factors. A term that the rows do not distinguish
    # from the terms before it is left out.
    columns = np.ones((len(data), 1))
    terms: list[tuple[str, ...]] = []
    left_out: list[tuple[str, ...]] = []
    candidates: list[tuple[str, ...]] = [(name,) for name in short_names]
    candidates += list(combinations([name for name in short_names if name != SEED], 2))
    for term in candidates:
        label = " x ".join(names[name][0] for name in term)
        term_columns = _contrasts(data, term)
        wider = np.hstack([columns, term_columns])
        if np.linalg.matrix_rank(wider) < np.linalg.matrix_rank(columns) + term_columns.shape[1]:
            notes.append(f"{label} is left out: these rows do not distinguish it from other terms.")
            left_out.append(term)
            continue
        columns = wider
        terms.append(term)
    if columns.shape[1] >= len(data) and any(len(term) > 1 for term in terms):
        terms = [term for term in terms if len(term) == 1]
        notes.append(
            "Interactions are left out, "
            "since without a second seed they are the only measure of the noise."
        )
        columns = np.hstack([np.ones((len(data), 1)), *(_contrasts(data, term) for term in terms)])

    # The fit, and from it the table of the terms.
    residual_df = len(data) - columns.shape[1]
    in_formula = {term: ":".join(f"C({name}, Sum)" for name in term) for term in terms}
    fit = ols(f"{VALUE} ~ {' + '.join(in_formula.values())}", data).fit()
    noise = float(fit.ssr)
    if residual_df < 1 or noise <= (ROUNDING * float(data[VALUE].abs().max())) ** 2 * len(data):
        notes.append(
            "The noise cannot be estimated from these trials, so nothing can be tested. Add seeds."
        )
        return Anova((), residual_df, tuple(notes))
    result = anova_lm(fit, typ=2)
    return Anova(
        tuple(
            _term(
                tuple(names[name][0] for name in term),
                result.loc[written],
                noise,
                tuple(
                    tuple(names[name][0] for name in other)
                    for other in left_out
                    if _are_correlated(data, term, other)
                ),
            )
            for term, written in in_formula.items()
        ),
        residual_df,
        tuple(notes),
    )


def two_level_effects(table: pd.DataFrame) -> tuple[Effect, ...]:
    """Compute the main effects and interactions of a two-level design, with their aliases.

    The design is full or a fraction. Each seed gives one estimate of an effect; the interval and
    the test are over seeds. Seeds that lack a row of the design are ignored. Aliased terms are all
    listed, each with the others as its aliases.

    Args:
        table: Observations as for :func:`anova`; every factor has two levels.

    Raises:
        ValueError: A column is missing, a value is not finite, a factor does not have two levels, a
            seed has a row twice, or no seed has all rows.
    """
    # The levels of every observation as signs: -1 for low, +1 for high.
    factors = _factors(table)
    levels = {factor: tuple(table[factor].drop_duplicates()) for factor in factors}
    for factor, factor_levels in levels.items():
        if len(factor_levels) != 2:
            raise ValueError(
                f"Effects are computed for factors with two levels; {factor} has "
                f"{len(factor_levels)}: {list(factor_levels)}."
            )
    signs = np.stack(
        [np.where(table[factor] == levels[factor][1], 1, -1) for factor in factors], axis=1
    )

    # The values by seed, for the seeds that have all rows of the design.
    by_seed: dict[int, dict[tuple[int, ...], float]] = {}
    values = finite(table[VALUE])
    for seed, run, value in zip(table[SEED], map(tuple, signs.tolist()), values, strict=True):
        if run in by_seed.setdefault(seed, {}):
            raise ValueError(
                f"The seed {seed} has two values for one combination of levels; expected one."
            )
        by_seed[seed][run] = float(value)
    runs = sorted({run for observed in by_seed.values() for run in observed})
    complete = [
        np.array([observed[run] for run in runs])
        for observed in by_seed.values()
        if len(observed) == len(runs)
    ]
    if not complete:
        raise ValueError(
            f"No seed has all {len(runs)} rows of the design, "
            "so no effect can be computed. Run the missing trials."
        )

    # The column of signs of every factor and of every pair of factors, then its contrast.
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
            tuple(
                other
                for other, other_column in terms.items()
                if other != term and _are_signs_correlated(other_column, column)
            ),
        )
        for term, column in terms.items()
        if len(set(column.tolist())) == 2
    )


def _are_signs_correlated(first: NDArray[np.int64], second: NDArray[np.int64]) -> bool:
    """Whether two columns of signs are correlated, fully or (in irregular designs) partly."""
    return bool(len(first) * (first @ second) != first.sum() * second.sum())


def _contrast(complete: Sequence[Floats], column: NDArray[np.int64]) -> Paired:
    values = np.array([run[column > 0].mean() - run[column < 0].mean() for run in complete])
    return one_sample(values, float(max(np.abs(run).max() for run in complete)))


def _dependency_text(term: AnovaTerm) -> str:
    pairs = [f"that of {first} on {second}" for first, second in term.aliases]
    depends = f"The effect of {term.factors[0]} depends on {term.factors[1]}"
    return (
        f"{depends}, or {', or '.join(pairs)}: these rows do not show which" if pairs else depends
    )


def _are_correlated(data: pd.DataFrame, term: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether these rows correlate two interactions.

    The part of the interactions that the main effects of their factors explain is removed first.
    """
    if min(len(term), len(other)) < 2:
        return False
    mains = dict.fromkeys((*term, *other))
    main_effects = np.hstack(
        [np.ones((len(data), 1)), *(_contrasts(data, (name,)) for name in mains)]
    )

    def residual(columns: Floats) -> Floats:
        fitted: Floats = main_effects @ np.linalg.lstsq(main_effects, columns, rcond=None)[0]
        return columns - fitted

    return bool(
        np.abs(residual(_contrasts(data, term)).T @ residual(_contrasts(data, other))).max() > 1e-6
    )


def _term(
    factors: tuple[str, ...],
    row: pd.Series[Any],
    noise: float,
    aliases: tuple[tuple[str, ...], ...],
) -> AnovaTerm:
    explained = float(row["sum_sq"])
    return AnovaTerm(
        factors,
        round(float(row["df"])),
        float(row["F"]),
        float(row["PR(>F)"]),
        explained / (explained + noise),
        aliases,
    )


def _factors(table: pd.DataFrame) -> list[str]:
    if missing := {VALUE, SEED} - set(table.columns):
        raise ValueError(
            f"The table lacks the columns {sorted(missing)}; it has {list(table.columns)}."
        )
    factors = [str(column) for column in table.columns if column not in (VALUE, SEED)]
    if not any(table[factor].nunique(dropna=False) > 1 for factor in factors):
        raise ValueError(
            f"No factor has two levels, so nothing can be compared; the factors are {factors}."
        )
    return factors


def _contrasts(data: pd.DataFrame, term: tuple[str, ...]) -> Floats:
    """Build the columns of a term in the design matrix.

    Levels have sum coding against the last level.
    """
    product = np.ones((len(data), 1))
    for name in term:
        codes = data[name].to_numpy()
        last = codes.max()
        level_columns = (codes[:, None] == np.arange(last)).astype(np.float64) - (
            codes[:, None] == last
        )
        product = (product[:, :, None] * level_columns[:, None, :]).reshape(len(data), -1)
    return product
