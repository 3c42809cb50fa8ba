"""Compute every number that a study's report shows.

All forms of the report print this one result. All tests, corrections and marks are about the noise
of training: the spread between seeds. The noise of the test set is a separate interval over images;
no p value and no mark depends on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sweeps.core.findings.class_scores import ClassScores, class_scores
from sweeps.core.findings.comparisons import (
    Figures,
    Pairs,
    compare,
    mark_best,
    measured_power,
    noise_floors,
    read_pairs,
    tested_pairs,
)
from sweeps.core.findings.confounders import find_confounders
from sweeps.core.findings.image_intervals import (
    ImageIntervals,
    image_intervals,
    missing_files,
    per_image_metrics,
)
from sweeps.core.findings.interactions import Crossing, crossings
from sweeps.core.findings.look_states import Looks
from sweeps.core.findings.looks import looks_of
from sweeps.core.statistics.power import Power
from sweeps.core.store.study_record import StudyRecord

MANY_TRIALS = 250
"""Larger studies get no analyses of variance, and no analyses that read a file for every trial.

A choice, so that a report takes seconds.
"""


@dataclass(frozen=True, slots=True)
class RowAnalysis:
    """One row of the table.

    Attributes:
        figures: Figures by metric key, for every metric of the study.
        finished: Number of trials with a result, of ``planned``.
        states: Number of trials by state, for the states that occur.
        confounders: Differences from the base row other than the block's factors, as
            phrases. Without confounders, the row measures the effect of its factors.
        classes: Scores by class; empty if the study has none.
    """

    figures: Mapping[str, Figures]
    finished: int
    planned: int
    states: Mapping[str, int]
    confounders: tuple[str, ...]
    classes: ClassScores


@dataclass(frozen=True, slots=True)
class StudyAnalysis:
    """All results of a study.

    Attributes:
        rows: Results by row number, as in the study.
        floors: Noise floor by metric key: half width of the interval of a difference that only
            seeds cause, from the A/A row; ``None`` if unknown. Plots draw it as a band around zero
            or around the base.
        power: Differences that the study can detect.
        crossings: Analyses of the blocks whose factors vary together.
        looks: Claims and their evidence.
        notes: Parts that were left out and the reasons, as sentences.
    """

    rows: tuple[RowAnalysis, ...]
    floors: Mapping[str, float | None]
    power: Power
    crossings: tuple[Crossing, ...]
    looks: Looks
    notes: tuple[str, ...]


def analyse(study: StudyRecord) -> StudyAnalysis:
    """Analyse a study in its current state, finished or not.

    Trials beyond the looks of a sequential study are not used.
    """
    looks = looks_of(study)
    study = study.first_seeds(looks.num_seeds)
    is_small = len(study.trials) <= MANY_TRIALS
    # Rows of a sequential study differ in their numbers of seeds. Each claim is tested at its own
    # looks; everything else compares the seeds that all rows have.
    common = study.first_seeds([looks.common] * len(study.cells))
    common_pairs = read_pairs(common)
    pairs = tested_pairs(read_pairs(study), common_pairs, looks)
    floors, power, marks = (
        noise_floors(common, common_pairs),
        measured_power(study, pairs),
        mark_best(common, common_pairs),
    )
    intervals = image_intervals(common, common_pairs) if is_small else ImageIntervals({}, {}, ())
    classes = class_scores(common, intervals) if is_small else {}
    figures = compare(study, pairs, floors, power, marks, intervals.metrics, looks)
    is_run_only: dict[object, bool] = {}
    rows = []
    for row in study.rows:
        trials, base = study.trials_of(row), None if row.versus is None else study.rows[row.versus]
        confounders = find_confounders(
            trials,
            study.trials_of(base) if base else (),
            base.label if base else "",
            study.blocks[row.block].factors,
            is_run_only,
        )
        rows.append(
            RowAnalysis(
                figures={metric.key: figures[row.number, metric.key] for metric in study.metrics},
                finished=sum(trial.counts for trial in trials),
                planned=len(trials),
                states=Counter(trial.state for trial in trials),
                confounders=confounders,
                classes=classes.get(row.number, {}),
            )
        )
    return StudyAnalysis(
        rows=tuple(rows),
        floors=floors,
        power=power,
        crossings=tuple(crossings(common, common_pairs)) if is_small else (),
        looks=looks,
        notes=(*marks.notes, *intervals.notes, *_missing_parts(study, pairs, is_small)),
    )


def _missing_parts(study: StudyRecord, pairs: Pairs, is_small: bool) -> list[str]:
    """List the analyses and numbers that this study lacks with the reasons, as sentences."""
    notes = []
    if not is_small:
        notes.append(
            f"With {len(study.trials)} trials, more than {MANY_TRIALS}, there are no intervals "
            "over images, no scores by class and no analyses of variance."
        )
    elif per_image_metrics(study):
        notes += missing_files(study)
    if all(len(values) < 2 for values in pairs.values.values()) and any(pairs.values.values()):
        notes.append(
            "With one seed nothing can be tested: no row is distinguishable from the best, "
            "so all are bold."
        )
    if study.rows and not any(row.role == "a/a" for row in study.rows):
        notes.append("There is no A/A row, so there is no noise floor.")
    return notes
