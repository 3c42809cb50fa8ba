"""Means, paired differences and their tests, the best rows, the noise floor and the power of a study.

All of it is about the noise of training: what differs between seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sweeps.core.statistics.image_noise import ImageInterval
from sweeps.core.statistics.paired import (
    Paired,
    Summary,
    holm,
    noise_floor,
    not_distinguishable,
    paired,
    summarise,
)
from sweeps.core.statistics.power import Power, PowerGoal, pooled_sd
from sweeps.core.store.study_record import StudyRecord, values_by_replicate

MANY_ROWS = 1000
"""Larger blocks have no marks: among so many pairs of rows hardly one can be told from the best."""

Place = tuple[int, str]
"""Number of a row, and key of a metric."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A row in a column.

    Attributes:
        summary: Over its seeds; ``None`` where no trial has the metric.
        paired: Difference to the row it is compared with, paired by place among the seeds; ``None``
            for a base and where no pair has ended.
        declared: Whether the study declared this comparison.
        p_holm: Corrected over all declared comparisons of the study; ``None`` for others and below
            two pairs.
        significant: Whether ``p_holm`` is below the study's significance.
        images: Interval of the same difference over resampled images; ``None`` where confusion
            matrices by image are not there for every pair, and for studies too large for it, see
            ``Analysis.notes``.
        bold: The best of its block or not distinguishable from it; the A/A row takes no part.
        underlined: The best of those that are distinguishable from the best.
        below_noise_floor: The difference is smaller than what differs where nothing does; ``None``
            where there is no difference or no noise floor.
        detectable: Smallest difference that this declared comparison detects with the study's
            power, in the metric's unit; infinite below two pairs, ``None`` where the scatter of
            differences is not known at all.
        underpowered: A declared comparison that is not significant, and cannot detect the study's
            smallest effect.
    """

    summary: Summary | None
    paired: Paired | None
    declared: bool
    p_holm: float | None
    significant: bool
    images: ImageInterval | None
    bold: bool
    underlined: bool
    below_noise_floor: bool | None
    detectable: float | None
    underpowered: bool


@dataclass(frozen=True, slots=True)
class Pairs:
    """A study's values, and those of each row beside the row it is compared with.

    Attributes:
        values: By place among the seeds.
        paired: Differences to the row that a row is compared with, of rows that are compared;
            ``None`` where no pair of trials has ended.
    """

    values: Mapping[Place, Mapping[int, float]]
    paired: Mapping[Place, Paired | None]


@dataclass(frozen=True, slots=True)
class Marks:
    """Places in bold, places that are underlined, and what was not marked and why."""

    bold: frozenset[Place]
    underlined: frozenset[Place]
    notes: tuple[str, ...]


def read_pairs(study: StudyRecord) -> Pairs:
    """Pair the values of every row with those of the row it is compared with."""
    keys = [metric.key for metric in study.metrics]
    values = {
        (row.number, key): values_by_replicate(study.trials_of(row), key)
        for row in study.rows
        for key in keys
    }
    differences = {
        (row.number, key): paired(values[row.number, key], values[row.versus, key])
        for row in study.rows
        if row.versus is not None
        for key in keys
    }
    return Pairs(values, differences)


def noise_floors(study: StudyRecord, pairs: Pairs) -> dict[str, float | None]:
    """By metric: how far the base and the base again (A/A) may be apart; ``None`` where that is not known."""
    again = next((row for row in study.rows if row.role == "a/a"), None)
    if again is None or again.versus is None:
        return {metric.key: None for metric in study.metrics}
    base, again_number = again.versus, again.number
    return {
        metric.key: noise_floor(
            pairs.values[base, metric.key].values(), pairs.values[again_number, metric.key].values()
        )
        for metric in study.metrics
    }


def power_goal(study: StudyRecord) -> PowerGoal:
    """What the study asks of its seeds."""
    return PowerGoal(
        len(study.comparisons()), study.significance, study.power, study.smallest_effect
    )


def measured_power(study: StudyRecord, pairs: Pairs) -> Power:
    """What the study can detect, given the scatter of its own pairs.

    The pairs are those of the declared comparison with the fewest, of those that have one. Standard
    deviations are pooled over comparisons: that of one over a handful of seeds is mostly chance.
    """
    declared = study.comparisons()
    tests = {place: pairs.paired[place] for place in declared}
    spreads: dict[str, list[tuple[int, float]]] = {key: [] for _, key in declared}
    for (_, key), test in tests.items():
        if test is not None and test.sd is not None:
            spreads[key].append((test.n - 1, test.sd))
    n = min((test.n for test in tests.values() if test), default=0)
    return power_goal(study).assess(n, {key: pooled_sd(known) for key, known in spreads.items()})


def mark_best(study: StudyRecord, pairs: Pairs) -> Marks:
    """Find the best rows and the second, block by block and metric by metric."""
    bold: set[Place] = set()
    underlined: set[Place] = set()
    notes = []
    for index in range(len(study.blocks)):
        rows = [row.number for row in study.rows if row.block == index and row.role != "a/a"]
        if len(rows) > MANY_ROWS:
            notes.append(
                f"No row is marked as the best, since there are more than {MANY_ROWS} rows."
            )
            continue
        for metric in study.metrics:
            key, sign = metric.key, 1 if metric.higher_is_better else -1
            values = {str(number): pairs.values[number, key] for number in rows}
            best = not_distinguishable(values, metric.higher_is_better, study.significance)
            bold |= {(int(label), key) for label in best}
            means = {
                label: sign * float(np.mean([*of_row.values()]))
                for label, of_row in values.items()
                if of_row and label not in best
            }
            if means:
                underlined.add((int(max(means, key=means.__getitem__)), key))
    return Marks(frozenset(bold), frozenset(underlined), tuple(notes))


def compare(
    study: StudyRecord,
    pairs: Pairs,
    floors: Mapping[str, float | None],
    power: Power,
    marks: Marks,
    images: Mapping[Place, ImageInterval],
) -> dict[Place, Figures]:
    """Every row under every metric."""
    goal, declared = power_goal(study), study.comparisons()
    tests = [pairs.paired[place] for place in declared]
    corrected = dict(zip(declared, holm([test.p if test else None for test in tests]), strict=True))
    figures = {}
    for place, values in pairs.values.items():
        key = place[1]
        test, p = pairs.paired.get(place), corrected.get(place)
        is_declared = place in corrected
        is_significant = p is not None and p <= study.significance
        detectable = (
            goal.detectable(test.n if test else 0, power.metrics[key].sd) if is_declared else None
        )
        is_sensitive = detectable is not None and detectable <= study.smallest_effect
        figures[place] = Figures(
            summary=summarise(values.values()),
            paired=test,
            declared=is_declared,
            p_holm=p,
            significant=is_significant,
            images=images.get(place),
            bold=place in marks.bold,
            underlined=place in marks.underlined,
            below_noise_floor=_is_within(test, floors[key]),
            detectable=detectable,
            underpowered=is_declared and not is_significant and not is_sensitive,
        )
    return figures


def _is_within(test: Paired | None, floor: float | None) -> bool | None:
    return None if test is None or floor is None else abs(test.difference) <= floor
