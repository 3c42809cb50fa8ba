"""Compare rows: means, paired tests, the best rows, the noise floor and the power.

All of these are about the noise of training: the spread between seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sweeps.core.findings.look_states import ClaimState, Looks
from sweeps.core.statistics.image_noise import ImageInterval
from sweeps.core.statistics.paired import (
    Paired,
    Summary,
    noise_floor,
    not_distinguishable,
    paired,
    summarise,
)
from sweeps.core.statistics.power import Power, PowerGoal, pooled_sd
from sweeps.core.store.study_record import StudyRecord, values_by_replicate

MANY_ROWS = 1000
"""Larger blocks get no marks: hardly any of so many rows is distinguishable from the best."""

Place = tuple[int, str]
"""A place in the table: row number and metric key."""


@dataclass(frozen=True, slots=True)
class Figures:
    """All numbers of one row and one metric.

    Attributes:
        summary: Mean and spread over the seeds; ``None`` if no trial has the metric.
        paired: Difference from the base row, paired by the index of the seed; ``None`` for a base
            row, and while no pair has finished.
        declared: Whether a claim of the study needs this comparison.
        p_holm: Sequential p value corrected over all claims of the study; ``None`` for other
            comparisons and below two pairs. With a fixed list of seeds it is Holm's p value over
            all declared comparisons.
        significant: Whether ``p_holm`` is at most the study's significance.
        images: Interval of the difference over resampled images. ``None`` if a pair has no
            confusion matrices of images, or if the study is too large: see
            ``StudyAnalysis.notes``.
        bold: Whether the row is the best of its block or not distinguishable from the best. The A/A
            row is ignored.
        underlined: Whether the row is the best of those that are distinguishable from the best.
        below_noise_floor: Whether the difference is within the noise floor; ``None`` if there is no
            difference or no noise floor.
        detectable: Smallest difference that this declared comparison detects with the study's
            power, in the metric's unit; infinite below two pairs, ``None`` if the scatter of the
            differences is unknown.
        underpowered: Whether a declared comparison is not significant and cannot detect the study's
            smallest effect. A sequential study has the outcome of the claim instead.
        claim: State of the claim that needs this comparison; ``None`` for other comparisons.
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
    claim: ClaimState | None


@dataclass(frozen=True, slots=True)
class Pairs:
    """Values of a study and paired differences of its rows.

    Attributes:
        values: Values by the index of the seed, for each place.
        paired: Difference from the base row, for each place of a row with a base; ``None`` while no
            pair of trials has finished.
    """

    values: Mapping[Place, Mapping[int, float]]
    paired: Mapping[Place, Paired | None]


@dataclass(frozen=True, slots=True)
class Marks:
    """Places in bold, underlined places, and notes about blocks without marks."""

    bold: frozenset[Place]
    underlined: frozenset[Place]
    notes: tuple[str, ...]


def read_pairs(study: StudyRecord) -> Pairs:
    """Read the values of all rows and pair them with their bases, over all common seeds."""
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


def tested_pairs(pairs: Pairs, common: Pairs, looks: Looks) -> Pairs:
    """Return the paired differences that a report shows.

    Those of the claims are from their last looks, the others over the common seeds.

    Args:
        pairs: Values of all seeds.
        common: The same over the seeds that all rows have.
        looks: State of the looks.
    """
    tests = {place: state.test for place, state in looks.comparisons.items()}
    return Pairs(pairs.values, {**common.paired, **tests})


def noise_floors(study: StudyRecord, pairs: Pairs) -> dict[str, float | None]:
    """Compute the noise floor of each metric from the A/A row; ``None`` if unknown."""
    base_again = next((row for row in study.rows if row.role == "a/a"), None)
    if base_again is None or base_again.versus is None:
        return {metric.key: None for metric in study.metrics}
    base, base_again_number = base_again.versus, base_again.number
    return {
        metric.key: noise_floor(
            pairs.values[base, metric.key].values(),
            pairs.values[base_again_number, metric.key].values(),
        )
        for metric in study.metrics
    }


def power_goal(study: StudyRecord) -> PowerGoal:
    """Return the study's requirements on the power of its comparisons."""
    return PowerGoal(
        len(study.tests.claims), study.significance, study.power, study.smallest_effect
    )


def measured_power(study: StudyRecord, pairs: Pairs) -> Power:
    """Compute the power of the study from the scatter of its own pairs.

    The number of pairs is that of the declared comparison with the fewest pairs, or the cap of a
    sequential study, up to which it goes on where nothing is decided. Standard
    deviations are pooled over comparisons: over a few seeds, that of one comparison is mostly
    chance.
    """
    tests = {place: pairs.paired[place] for place in study.tests.places}
    spreads: dict[str, list[tuple[int, float]]] = {key: [] for _, key in tests}
    for (_, key), test in tests.items():
        if test is not None and test.sd is not None:
            spreads[key].append((test.n - 1, test.sd))
    n = min((test.n for test in tests.values() if test), default=0)
    if study.sequential is not None:
        n = study.sequential.cap
    return power_goal(study).assess(n, {key: pooled_sd(groups) for key, groups in spreads.items()})


def mark_best(study: StudyRecord, pairs: Pairs) -> Marks:
    """Find the best and the second-best rows of each block, for each metric."""
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
    looks: Looks,
) -> dict[Place, Figures]:
    """Compute the figures of every row and metric."""
    goal, declared, claim_of = power_goal(study), looks.comparisons, looks.claim_of
    is_sequential = study.sequential is not None
    figures = {}
    for place, values in pairs.values.items():
        key = place[1]
        test, is_declared = pairs.paired.get(place), place in declared
        p = declared[place].p if is_declared else None
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
            underpowered=(
                is_declared and not (is_significant or is_sensitive) and not is_sequential
            ),
            claim=claim_of.get(place),
        )
    return figures


def _is_within(test: Paired | None, floor: float | None) -> bool | None:
    return None if test is None or floor is None else abs(test.difference) <= floor
