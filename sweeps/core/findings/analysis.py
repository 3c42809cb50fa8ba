"""Every number that a study's report shows, from its record: the one source of all forms of the table.

Training noise is what differs between seeds; all tests, corrections and marks are about it. Noise of the test set is
told beside it by an interval over images, and enters no p and no mark.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np

from sweeps.core.design.factors import Scalar
from sweeps.core.design.study import PlannedRow
from sweeps.core.findings.confounders import daggers
from sweeps.core.findings.evaluations import PER_IMAGE, Resampled, class_iou, resampled, unreadable_files
from sweeps.core.statistics.anova import SEED, VALUE, Anova, Effect, anova, two_level_effects
from sweeps.core.statistics.image_noise import ImageInterval, class_difference_intervals, difference_interval
from sweeps.core.statistics.paired import (
    Floats,
    Paired,
    Summary,
    detectable_effect,
    holm,
    noise_floor,
    not_distinguishable,
    paired,
    seeds_needed,
    summarise,
)
from sweeps.core.store.study_record import StudyRecord, TrialRecord, values_by_replicate

MANY_TRIALS = 250
"""Larger studies are analysed without what reads a file for every trial, and without analyses of variance."""
FILES_NAMED = 3
"""Missing or damaged files that are named one by one."""
MANY_ROWS = 1000
"""Larger blocks have no marks: among so many pairs of rows hardly one can be told from the best."""
ADDS_UP = 1e-4
"""Largest difference between a metric and the same computed from confusion matrices by image that is rounding."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A row in a column.

    Attributes:
        summary: Over its seeds; ``None`` where no trial has the metric.
        paired: Difference to the row it is compared with, paired by place among the seeds; ``None`` for a base and
            where no pair has ended.
        declared: Whether the study declared this comparison.
        p_holm: Corrected over all declared comparisons of the study; ``None`` for others and below two pairs.
        significant: Whether ``p_holm`` is below the study's significance.
        images: Interval of the same difference over resampled images; ``None`` where confusion matrices by image are
            not there for every pair, and for studies too large for it, see ``Analysis.notes``.
        bold: The best of its block or not distinguishable from it; the A/A row takes no part.
        underlined: The best of those that are distinguishable from the best.
        below_noise_floor: The difference is smaller than what differs where nothing does; ``None`` where there is no
            difference or no noise floor.
        detectable: Smallest difference that this declared comparison detects with the study's power, in the metric's
            unit; infinite below two pairs, ``None`` where the scatter of differences is not known at all.
        underpowered: A declared comparison that is not significant, and cannot detect the study's smallest effect.
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
class ClassFigures:
    """A class's IoU in a row and its difference to the row it is compared with; not corrected for their number.

    ``summary`` is ``None`` for a class that the ground truth does not contain.
    """

    name: str
    summary: Summary | None
    paired: Paired | None
    images: ImageInterval | None


@dataclass(frozen=True, slots=True)
class RowAnalysis:
    """One row of the table.

    Attributes:
        number: Its number in the study.
        figures: By key of the metric, for every metric of the study.
        finished: Trials that count, of ``planned``.
        states: Number of trials by state, for the states that occur.
        daggers: What differs from the row it is compared with besides the block's factors, in sentences without a full
            stop. Where no such thing is there, the row's numbers answer the question that the row asks.
        classes: By key of the metric (those that have an IoU by class), background first.
    """

    number: int
    figures: Mapping[str, Figures]
    finished: int
    planned: int
    states: Mapping[str, int]
    daggers: tuple[str, ...]
    classes: Mapping[str, tuple[ClassFigures, ...]]


@dataclass(frozen=True, slots=True)
class MetricPower:
    """What the study can detect in a metric.

    Attributes:
        sd: Standard deviation of a paired difference, pooled over the study's comparisons; ``None`` below two pairs.
        detectable: Smallest difference that ``Power.n`` pairs detect, in the metric's unit; ``None`` where ``sd`` is.
        seeds_needed: Seeds for the study's smallest effect; ``None`` where ``sd`` is.
        underpowered: Whether ``detectable`` exceeds the study's smallest effect, or is not known.
    """

    sd: float | None
    detectable: float | None
    seeds_needed: int | None
    underpowered: bool


@dataclass(frozen=True, slots=True)
class Power:
    """What the study can detect at all.

    Attributes:
        comparisons: Number of declared comparisons.
        n: Pairs of the declared comparison with the fewest, of those that have one; 0 where none has.
        detectable_sd: Smallest detectable difference in standard deviations of a paired difference; infinite below
            two pairs.
        metrics: By key, for the metrics with declared comparisons.
    """

    comparisons: int
    n: int
    detectable_sd: float
    metrics: Mapping[str, MetricPower]


@dataclass(frozen=True, slots=True)
class LevelMean:
    """Mean of a metric over the cells with a factor at a level: a point of an effect plot.

    With ``other``, only over those cells where that factor is at ``other_level``.
    """

    factor: str
    level: Scalar
    other: str | None
    other_level: Scalar
    mean: float
    cells: int


@dataclass(frozen=True, slots=True)
class Crossing:
    """Factors of a block that were varied together, and what that says of a metric.

    Attributes:
        block: Number of the block.
        metric: Key of the metric.
        factors: Paths, in the block's order.
        anova: Main effects and, where the design allows, interactions, with the seeds as blocks.
        effects: Effects and interactions with their aliases, where every factor has two levels and a seed all rows.
        means: Of every factor's levels, then of every factor's levels at every level of every other.
        warnings: Where a row that varies one factor alone depends on another factor, in sentences.
    """

    block: int
    metric: str
    factors: tuple[str, ...]
    anova: Anova
    effects: tuple[Effect, ...]
    means: tuple[LevelMean, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything.

    Attributes:
        rows: By number, as in the study.
        floors: By key: half width of the interval of a difference where nothing differs, from the A/A row; ``None``
            where that is not known. Drawn as a band around zero, or around the base.
        crossings: Of blocks with several factors.
        notes: What was left out and why, in sentences.
    """

    rows: tuple[RowAnalysis, ...]
    floors: Mapping[str, float | None]
    power: Power
    crossings: tuple[Crossing, ...]
    notes: tuple[str, ...]


def analyse(study: StudyRecord) -> Analysis:
    """Compute everything, of the study as it stands."""
    return _Analyst(study).analysis()


class _Analyst:
    """One analysis while it is made."""

    def __init__(self, study: StudyRecord) -> None:
        self.study = study
        self.small = len(study.trials) <= MANY_TRIALS
        self.declared = study.comparisons()
        self.notes: list[str] = []
        self.keys = tuple(metric.key for metric in study.metrics)
        self.per_image = tuple(key for key in self.keys if key in PER_IMAGE)
        self.values = {
            (row.number, key): values_by_replicate(study.trials_of(row), key) for row in study.rows for key in self.keys
        }
        self.paired = {
            (row.number, key): paired(self.values[row.number, key], self.values[row.versus, key])
            for row in study.rows
            if row.versus is not None
            for key in self.keys
        }

    def analysis(self) -> Analysis:
        study = self.study
        tests = [self.paired[comparison] for comparison in self.declared]
        corrected = dict(zip(self.declared, holm([test.p if test else None for test in tests]), strict=True))
        power = self._power(tests)
        floors = {key: self._floor(key) for key in self.keys}
        bold, underlined = self._marks()
        intervals = self._image_intervals() if self.small else {}
        classes = self._classes(intervals) if self.small else {}
        known: dict[object, bool] = {}
        rows = []
        for row in study.rows:
            figures = {}
            for key in self.keys:
                place = (row.number, key)
                test, p = self.paired.get(place), corrected.get(place)
                significant = p is not None and p <= study.significance
                detectable = self._detectable(test, power, key) if place in corrected else None
                figures[key] = Figures(
                    summary=summarise(self.values[place].values()),
                    paired=test,
                    declared=place in corrected,
                    p_holm=p,
                    significant=significant,
                    images=intervals[place][0] if place in intervals else None,
                    bold=place in bold,
                    underlined=place in underlined,
                    below_noise_floor=_within(test, floors[key]),
                    detectable=detectable,
                    underpowered=place in corrected
                    and not significant
                    and not (detectable is not None and detectable <= study.smallest_effect),
                )
            base = None if row.versus is None else study.rows[row.versus]
            rows.append(
                RowAnalysis(
                    number=row.number,
                    figures=figures,
                    finished=sum(trial.counts for trial in study.trials_of(row)),
                    planned=len(study.trials_of(row)),
                    states=Counter(trial.state for trial in study.trials_of(row)),
                    daggers=daggers(
                        study.trials_of(row),
                        study.trials_of(base) if base else None,
                        base.label if base else "",
                        study.blocks[row.block].factors,
                        known,
                    ),
                    classes=classes.get(row.number, {}),
                )
            )
        crossings = tuple(self._crossings()) if self.small else ()
        self._remark()
        return Analysis(tuple(rows), floors, power, crossings, tuple(self.notes))

    def _detectable(self, test: Paired | None, power: Power, key: str) -> float | None:
        sd = power.metrics[key].sd
        return None if sd is None else self._effect(test.n if test else 0) * sd

    def _effect(self, n: int) -> float:
        study = self.study
        return detectable_effect(n, len(self.declared), study.significance, study.power)

    def _power(self, tests: Sequence[Paired | None]) -> Power:
        """Standard deviations are pooled over comparisons: that of one over a handful of seeds is mostly chance."""
        study, declared = self.study, self.declared
        n = min((test.n for test in tests if test), default=0)
        if not declared:
            return Power(0, n, math.inf, {})
        metrics = {}
        for key in dict.fromkeys(key for _, key in declared):
            own = [test for test, (_, metric) in zip(tests, declared, strict=True) if metric == key]
            spreads = [(test.n - 1, test.sd) for test in own if test and test.sd is not None]
            sd = seeds = detectable = None
            if spreads:
                sd = math.sqrt(sum(df * one**2 for df, one in spreads) / sum(df for df, _ in spreads))
                detectable = self._effect(n) * sd
                seeds = seeds_needed(study.smallest_effect, sd, len(declared), study.significance, study.power)
            metrics[key] = MetricPower(
                sd, detectable, seeds, not (detectable is not None and detectable <= study.smallest_effect)
            )
        return Power(len(declared), n, self._effect(n), metrics)

    def _floor(self, key: str) -> float | None:
        again = next((row for row in self.study.rows if row.role == "a/a"), None)
        if again is None or again.versus is None:
            return None
        return noise_floor(self.values[again.versus, key].values(), self.values[again.number, key].values())

    def _marks(self) -> tuple[set[tuple[int, str]], set[tuple[int, str]]]:
        """Places in bold and underlined, block by block and column by column."""
        bold, underlined = set(), set()
        for index in range(len(self.study.blocks)):
            rows = [row.number for row in self.study.rows if row.block == index and row.role != "a/a"]
            if len(rows) > MANY_ROWS:
                self.notes.append(f"No row is marked as the best, since there are more than {MANY_ROWS} rows.")
                continue
            for metric in self.study.metrics:
                key, sign = metric.key, 1 if metric.higher_is_better else -1
                values = {str(number): self.values[number, key] for number in rows}
                best = not_distinguishable(values, metric.higher_is_better, self.study.significance)
                bold |= {(int(label), key) for label in best}
                rest = {label: sign * float(np.mean([*its.values()])) for label, its in values.items() if its}
                rest = {label: mean for label, mean in rest.items() if label not in best}
                if rest:
                    underlined.add((int(max(rest, key=rest.__getitem__)), key))
        return bold, underlined

    def _image_intervals(self) -> dict[tuple[int, str], tuple[ImageInterval, tuple[ImageInterval | None, ...]]]:
        """By row and metric, over the very pairs of trials that the paired difference is of; with those of classes."""
        found = {}
        odd: list[str] = []
        for row in self.study.rows:
            for key in self.per_image:
                test = self.paired.get((row.number, key))
                arrays = self._pairs(row, key) if test else None
                if test is None or arrays is None:
                    continue
                interval = difference_interval(*arrays)
                if abs(interval.difference - test.difference) > ADDS_UP:
                    odd.append(f"{row.label} ({key})")
                    continue
                found[row.number, key] = (interval, class_difference_intervals(*arrays))
        if odd:
            self.notes.append(
                "No interval over images, since the confusion matrices by image do not add up to the metric: "
                f"{', '.join(odd)}."
            )
        return found

    def _pairs(self, row: PlannedRow, key: str) -> tuple[Floats, Floats] | None:
        """IoU on resampled images of the row and of what it is compared with; a place for each pair of evaluations."""
        if row.versus is None:
            return None
        ours, theirs = (
            {trial.replicate: trial for trial in self.study.trials_of(shown)}
            for shown in (row, self.study.rows[row.versus])
        )
        common = sorted(self.values[row.number, key].keys() & self.values[row.versus, key].keys())
        pairs = [(self._resampled(ours[replicate]), self._resampled(theirs[replicate])) for replicate in common]
        mine, its = [], []
        for one, other in pairs:
            if one is None or other is None or one[0] != other[0] or one[1][key].shape != other[1][key].shape:
                return None
            mine.append(one[1][key])
            its.append(other[1][key])
        return np.concatenate(mine), np.concatenate(its)

    def _resampled(self, trial: TrialRecord) -> tuple[tuple[str, ...], Resampled] | None:
        return resampled(trial, self.per_image)

    def _classes(
        self, intervals: Mapping[tuple[int, str], tuple[ImageInterval, tuple[ImageInterval | None, ...]]]
    ) -> dict[int, dict[str, tuple[ClassFigures, ...]]]:
        iou = {
            row.number: {trial.replicate: class_iou(trial) for trial in self.study.trials_of(row) if trial.counts}
            for row in self.study.rows
        }
        found: dict[int, dict[str, tuple[ClassFigures, ...]]] = {}
        for row in self.study.rows:
            for key in self.per_image:
                names = next((scores[key] for scores in iou[row.number].values() if key in scores), {})
                images = intervals[row.number, key][1] if (row.number, key) in intervals else ()
                if len(images) != len(names):  # the scores of all seeds, or some counts, are missing or damaged
                    images = (None,) * len(names)
                figures = []
                for name, interval in zip(names, images, strict=True):
                    own = _of_class(iou[row.number], key, name)
                    base = {} if row.versus is None else _of_class(iou[row.versus], key, name)
                    figures.append(ClassFigures(name, summarise(own.values()), paired(own, base), interval))
                if figures:
                    found.setdefault(row.number, {})[key] = tuple(figures)
        return found

    def _crossings(self) -> Iterator[Crossing]:
        for index, block in enumerate(self.study.blocks):
            rows = [row for row in self.study.rows if row.block == index and row.role != "a/a"]
            levels = {row.number: _levels(self.study, row, block.factors) for row in rows}
            for key in block.metrics:
                there = [row for row in rows if self.values[row.number, key]]
                if not any(
                    _crossed([(levels[row.number][one], levels[row.number][other]) for row in there])
                    for one, other in combinations(block.factors, 2)
                ):
                    continue
                yield self._crossing(index, key, there, levels)

    def _crossing(
        self, block: int, key: str, rows: Sequence[PlannedRow], levels: Mapping[int, Mapping[str, Scalar]]
    ) -> Crossing:
        import pandas as pd

        factors = self.study.blocks[block].factors
        table = pd.DataFrame(
            [
                # As text: 1, 1.0 and True are three levels, and None is one.
                {VALUE: value, SEED: replicate} | {path: str(level) for path, level in levels[row.number].items()}
                for row in rows
                for replicate, value in self.values[row.number, key].items()
            ]
        )
        variance = anova(table)
        warnings = variance.dependencies(self.study.significance)
        whole = all(len(self.values[row.number, key]) == len(self.study.trials_of(row)) for row in rows)
        two_level = all(table[path].nunique() == 2 for path in factors)
        means = {row.number: float(np.mean([*self.values[row.number, key].values()])) for row in rows}
        return Crossing(
            block=block,
            metric=key,
            factors=factors,
            anova=variance,
            effects=two_level_effects(table) if whole and two_level else (),
            means=tuple(_level_means(factors, [(levels[number], mean) for number, mean in means.items()])),
            warnings=warnings,
        )

    def _remark(self) -> None:
        """Say what a reader would look for and not find."""
        study = self.study
        if not self.small:
            self.notes.append(
                f"With {len(study.trials)} trials, more than {MANY_TRIALS}, there are no intervals over images, no "
                "scores by class and no analyses of variance."
            )
        elif self.per_image:
            self._remark_on_files()
        if all(len(values) < 2 for values in self.values.values()) and any(self.values.values()):
            self.notes.append("With one seed nothing can be tested: no row is told from the best, so all are bold.")
        if study.rows and not any(row.role == "a/a" for row in study.rows):
            self.notes.append("There is no A/A row, so there is no noise floor.")

    def _remark_on_files(self) -> None:
        """Say which trials lack intervals over images or scores by class, and for want of which files."""
        study = self.study
        counted = [trial for trial in study.trials if trial.counts]
        files = {trial.key: unreadable_files(trial) for trial in counted}
        number = sum(bool(of_trial) for of_trial in files.values())
        if not number:
            return
        names = [path.relative_to(study.path.parent).as_posix() for of_trial in files.values() for path in of_trial]
        rest = len(names) - FILES_NAMED
        self.notes.append(
            f"For {number} of {len(counted)} finished trials, counts by image or scores by class are missing or "
            "damaged, so their rows lack intervals over images or scores by class. The files: "
            f"{', '.join(names[:FILES_NAMED])}{f' and {rest} more' if rest > 0 else ''}."
        )


def _within(test: Paired | None, floor: float | None) -> bool | None:
    return None if test is None or floor is None else abs(test.difference) <= floor


def _of_class(scores: Mapping[int, Mapping[str, Mapping[str, float | None]]], key: str, name: str) -> dict[int, float]:
    values = {replicate: own.get(key, {}).get(name) for replicate, own in scores.items()}
    return {replicate: value for replicate, value in values.items() if value is not None}


def _levels(study: StudyRecord, row: PlannedRow, factors: Sequence[str]) -> dict[str, Scalar]:
    """What a row has each factor at: what it changes, else what its trials resolved it to."""
    trials, changes = study.trials_of(row), study.changes_of(row)
    config: Mapping[str, object] = next((trial.entry["config"] for trial in trials if trial.entry), {})
    return {path: changes[path] if path in changes else _at(config, path) for path in factors}


def _at(config: Mapping[str, object], path: str) -> Scalar:
    node: object = config
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node if isinstance(node, bool | int | float | str) else None


def _crossed(pairs: Sequence[tuple[Scalar, Scalar]]) -> bool:
    """Whether two levels of the one factor both occur with the same two levels of the other."""
    seen: dict[str, set[str]] = {}
    for one, other in pairs:
        seen.setdefault(str(one), set()).add(str(other))
    return any(len(first & second) > 1 for first, second in combinations(seen.values(), 2))


def _level_means(factors: Sequence[str], cells: Sequence[tuple[Mapping[str, Scalar], float]]) -> Iterator[LevelMean]:
    def mean(factor: str, level: Scalar, other: str | None, other_level: Scalar, values: list[float]) -> LevelMean:
        return LevelMean(factor, level, other, other_level, float(np.mean(values)), len(values))

    for factor in factors:
        for level, values in _grouped([(levels[factor], value) for levels, value in cells]):
            yield mean(factor, level, None, None, values)
    for factor, other in permutations(factors, 2):
        for other_level, _ in _grouped([(levels[other], value) for levels, value in cells]):
            within = [(levels[factor], value) for levels, value in cells if str(levels[other]) == str(other_level)]
            for level, values in _grouped(within):
                yield mean(factor, level, other, other_level, values)


def _grouped(pairs: Sequence[tuple[Scalar, float]]) -> list[tuple[Scalar, list[float]]]:
    """Values by level in the order of first appearance; 1, 1.0 and True are three levels."""
    groups: dict[str, tuple[Scalar, list[float]]] = {}
    for level, value in pairs:
        groups.setdefault(str(level), (level, []))[1].append(value)
    return list(groups.values())
