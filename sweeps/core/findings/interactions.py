"""Analyse blocks whose factors vary together: which factors act, alone or together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from sweeps.core.design.factors import Scalar
from sweeps.core.design.study import PlannedRow
from sweeps.core.findings.comparisons import Pairs
from sweeps.core.statistics.anova import SEED, VALUE, Anova, Effect, anova, two_level_effects
from sweeps.core.store.study_record import StudyRecord


@dataclass(frozen=True, slots=True)
class LevelMean:
    """Mean of a metric over the configurations with given levels of two factors.

    It is one point of an interaction plot.
    """

    factor: str
    level: Scalar
    other: str
    other_level: Scalar
    mean: float


@dataclass(frozen=True, slots=True)
class Crossing:
    """Analysis of one metric of a block whose factors vary together.

    Attributes:
        block: Index of the block.
        metric: Metric key.
        anova: Analysis of variance with the seeds as blocks; it has interactions if the design
            allows them.
        effects: Effects and interactions with their aliases; empty unless every factor has two
            levels and all trials have finished.
        means: Means at every pair of levels of every two factors.
        warnings: Sentences about factors whose effect depends on another factor.
    """

    block: int
    metric: str
    anova: Anova
    effects: tuple[Effect, ...]
    means: tuple[LevelMean, ...]
    warnings: tuple[str, ...]


def crossings(study: StudyRecord, pairs: Pairs) -> Iterator[Crossing]:
    """Yield the analysis of every block and metric with two factors that vary together.

    Only finished trials count.
    """
    for index, block in enumerate(study.blocks):
        rows = [row for row in study.rows if row.block == index and row.role != "a/a"]
        levels = {row.number: _levels(study, row, block.factors) for row in rows}
        for key in block.metrics:
            finished_rows = [row for row in rows if pairs.values[row.number, key]]
            if not any(
                _crossed(
                    [
                        (levels[row.number][factor], levels[row.number][other])
                        for row in finished_rows
                    ]
                )
                for factor, other in combinations(block.factors, 2)
            ):
                continue
            yield _crossing(study, pairs, index, key, finished_rows, levels)


def _crossing(
    study: StudyRecord,
    pairs: Pairs,
    block: int,
    key: str,
    rows: Sequence[PlannedRow],
    levels: Mapping[int, Mapping[str, Scalar]],
) -> Crossing:
    import pandas as pd

    factors = study.blocks[block].factors
    table = pd.DataFrame(
        [
            # Levels as text: 1, 1.0 and True are three levels, and None is a level.
            {VALUE: value, SEED: replicate}
            | {path: str(level) for path, level in levels[row.number].items()}
            for row in rows
            for replicate, value in pairs.values[row.number, key].items()
        ]
    )
    variance = anova(table)
    warnings = variance.dependencies(study.significance)
    is_complete = all(
        len(pairs.values[row.number, key]) == len(study.trials_of(row)) for row in rows
    )
    two_level = all(table[path].nunique() == 2 for path in factors)
    means = {row.number: float(np.mean([*pairs.values[row.number, key].values()])) for row in rows}
    return Crossing(
        block=block,
        metric=key,
        anova=variance,
        effects=two_level_effects(table) if is_complete and two_level else (),
        means=tuple(
            _level_means(factors, [(levels[number], mean) for number, mean in means.items()])
        ),
        warnings=warnings,
    )


def _levels(study: StudyRecord, row: PlannedRow, factors: Sequence[str]) -> dict[str, Scalar]:
    """Return the level of each factor: from the row's changes, else from its trials' config."""
    trials, changes = study.trials_of(row), study.changes_of(row)
    config: Mapping[str, object] = next((trial.entry.config for trial in trials if trial.entry), {})
    return {path: changes[path] if path in changes else _at(config, path) for path in factors}


def _at(config: Mapping[str, object], path: str) -> Scalar:
    node: object = config
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node if isinstance(node, bool | int | float | str) else None


def _crossed(pairs: Sequence[tuple[Scalar, Scalar]]) -> bool:
    """Whether two factors vary together.

    They do if two levels of one factor both occur with the same two levels of the other.
    """
    levels_of: dict[str, set[str]] = {}
    for level, other_level in pairs:
        levels_of.setdefault(str(level), set()).add(str(other_level))
    return any(len(first & second) > 1 for first, second in combinations(levels_of.values(), 2))


def _level_means(
    factors: Sequence[str], cells: Sequence[tuple[Mapping[str, Scalar], float]]
) -> Iterator[LevelMean]:
    for factor, other in combinations(factors, 2):
        points: dict[tuple[str, str], tuple[Scalar, Scalar, list[float]]] = {}
        for levels, value in cells:
            level, other_level = levels[factor], levels[other]
            # Levels as text: 1, 1.0 and True are three levels.
            points.setdefault((str(level), str(other_level)), (level, other_level, []))[2].append(
                value
            )
        for level, other_level, values in points.values():
            yield LevelMean(factor, level, other, other_level, float(np.mean(values)))
