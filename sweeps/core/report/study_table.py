"""Make the table of a study from its record, its analysis and its verdict.

Nothing here depends on when, where or by whom the study was run.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from sweeps.core.design.study import Cell, Metric, PlannedRow
from sweeps.core.findings.analysis import RowAnalysis, StudyAnalysis
from sweeps.core.findings.verdict import Verdict
from sweeps.core.report.columns import COLUMNS, Measurement, StatisticColumn, TableMetric
from sweeps.core.report.numbers import format_difference, format_value, is_percent
from sweeps.core.report.table import NOT_VOC, StudyTable, TableBlock, TableRow
from sweeps.core.store.study_record import StudyRecord, TrialRecord
from toco.evaluate.report import map_of, title_of

MEANINGS = {
    "val/cam_miou": "mIoU of the CAM of the last block",
    "val/aux_cam_miou": "mIoU of the auxiliary CAM, made from the tokens of the auxiliary block",
    "val/seg_miou": "mIoU of the decoder's segmentation",
    "val/patch_similarity_last": "mean cosine similarity of the patch tokens after the last block (1 = all the same)",
}
"""What a column shows, by key."""
MAX_STATES = 50
"""Trials that are named one by one because they do not count."""


def study_table(
    study: StudyRecord, analysis: StudyAnalysis, verdict: Verdict, columns: tuple[StatisticColumn, ...] = COLUMNS
) -> StudyTable:
    """The table of a study as it stands, which may be unfinished.

    Args:
        study: The study.
        analysis: Its numbers.
        verdict: Its verdict.
        columns: The statistics to print.
    """
    metrics = tuple(_metric(metric) for metric in study.metrics)
    footnotes: dict[str, int] = {}
    for row in analysis.rows:
        for text in row.daggers:
            footnotes.setdefault(f"{text}.", len(footnotes) + 1)
    return StudyTable(
        title=study.title,
        columns=columns,
        metrics=metrics,
        blocks=_blocks(study, analysis, verdict, metrics, footnotes),
        claims=verdict.claims,
        verdict=verdict.sentence,
        warnings=tuple(dict.fromkeys(warning for crossing in analysis.crossings for warning in crossing.warnings)),
        footnotes=tuple(footnotes),
        states=_states(study),
        captions=(*_captions(study, analysis, metrics), *(column.note for column in columns if column.note)),
    )


def _metric(metric: Metric) -> TableMetric:
    percent = is_percent(metric.key)
    of_map = map_of(metric.key)
    derived = metric.key if of_map is None else f"mIoU of the {title_of(of_map)}"
    meaning = MEANINGS.get(metric.key, derived) + (", in percent" if percent else "")
    return TableMetric(metric.key, metric.title, meaning, percent, metric.higher_is_better)


def _blocks(
    study: StudyRecord,
    analysis: StudyAnalysis,
    verdict: Verdict,
    metrics: tuple[TableMetric, ...],
    footnotes: Mapping[str, int],
) -> tuple[TableBlock, ...]:
    texts: dict[int, dict[str, str]] = {}
    for row_verdict in verdict.rows:
        texts.setdefault(row_verdict.row, {})[row_verdict.metric] = row_verdict.text
    rows: list[list[TableRow]] = [[] for _ in study.blocks]
    for row, numbers in zip(study.rows, analysis.rows, strict=True):
        rows[row.block].append(_row(study, row, numbers, metrics, footnotes, texts.get(row.number, {})))
    blocks = []
    for block, of_block in zip(study.blocks, rows, strict=True):
        published = {key for row in of_block for key in row.paper}
        blocks.append(
            TableBlock(
                block.title,
                tuple(of_block),
                tuple(metric for metric in metrics if metric.key in block.metrics),
                tuple(metric for metric in metrics if metric.key in published),
            )
        )
    return tuple(blocks)


def _row(
    study: StudyRecord,
    row: PlannedRow,
    numbers: RowAnalysis,
    metrics: tuple[TableMetric, ...],
    footnotes: Mapping[str, int],
    verdicts: Mapping[str, str],
) -> TableRow:
    paper_row = study.published(row)
    paper = paper_row.metrics if paper_row else {}
    return TableRow(
        number=row.number,
        label=row.label,
        role=row.role,
        versus=None if row.versus is None else study.rows[row.versus].label,
        measurements=tuple(Measurement(study, row, numbers, metric) for metric in metrics),
        n=_seeds(numbers, metrics),
        footnotes=tuple(footnotes[f"{text}."] for text in numbers.daggers),
        paper_label=row.paper_row,
        paper={
            metric.key: format_value(paper[metric.key], percent=metric.percent)
            for metric in metrics
            if metric.key in paper
        },
        verdict=_row_verdict(metrics, verdicts),
    )


def _seeds(numbers: RowAnalysis, metrics: Iterable[TableMetric]) -> str:
    """The number of seeds, which every row shows: a mean of one seed must not look like a mean of ten."""
    count = numbers.finished
    text = str(count) if count == numbers.planned else f"{count} of {numbers.planned}"
    fewer = [f"{metric.title} {n}" for metric, n in _missing(numbers, metrics)]
    return f"{text} ({', '.join(fewer)})" if fewer else text


def _missing(numbers: RowAnalysis, metrics: Iterable[TableMetric]) -> list[tuple[TableMetric, int]]:
    """Metrics that some finished trials of the row lack, with the number of those that have them."""
    summaries = [(metric, numbers.figures[metric.key].summary) for metric in metrics]
    return [(metric, found.n) for metric, found in summaries if found is not None and found.n < numbers.finished]


def _row_verdict(metrics: Iterable[TableMetric], verdicts: Mapping[str, str]) -> str:
    if len(set(verdicts.values())) <= 1:
        return next(iter(verdicts.values()), "")
    return "; ".join(f"{metric.title} {verdicts[metric.key]}" for metric in metrics if metric.key in verdicts)


def _states(study: StudyRecord) -> tuple[str, ...]:
    ended = [
        _end(cell, trial)
        for cell, trials in zip(study.cells, study.trials_by_cell, strict=True)
        for trial in trials
        if trial.state in ("failed", "diverged")
    ]
    lines = ended[:MAX_STATES]
    if len(ended) > MAX_STATES:
        lines.append(f"{len(ended) - MAX_STATES} more failed or diverged.")
    pending = Counter(trial.state for trial in study.trials if trial.state in ("running", "waiting"))
    lines += [f"{count} of {len(study.trials)} trials {_verb(state, count)}." for state, count in pending.items()]
    return tuple(lines)


def _verb(state: str, count: int) -> str:
    return f"{'is' if count == 1 else 'are'} {state}"


def _end(cell: Cell, trial: TrialRecord) -> str:
    """How a trial ended; of a traceback only the exception's name, since its text may hold paths."""
    name = f"{cell.label}, seed {trial.seed}"
    if trial.state == "diverged":
        return f"{name}: diverged. {trial.message or ''}".rstrip()
    last = (trial.message or "").strip().rpartition("\n")[2]
    kind = re.match(r"[\w.]+", last)
    return f"{name}: failed{f' ({kind[0]})' if kind else ''}."


def _captions(study: StudyRecord, analysis: StudyAnalysis, metrics: tuple[TableMetric, ...]) -> tuple[str, ...]:
    lines = [f"{metric.title}: {metric.meaning}." for metric in metrics]
    lines.append("Mean ± sample standard deviation over n seeds; n = 1 has no spread.")
    if any(row.paired for numbers in analysis.rows for row in numbers.figures.values()):
        family = len(study.comparisons())
        lines.append(
            "Differences are paired by seed, with their t interval; p: two-sided paired t test after Holm's correction "
            f"over the {family} declared comparison{'' if family == 1 else 's'} of the study; d: the difference in "
            "standard deviations of the differences (Hedges)."
        )
    if any(figures.images for numbers in analysis.rows for figures in numbers.figures.values()):
        lines.append(
            "Over images: the interval that another draw of test images would give, by a paired bootstrap, the trained "
            "networks being fixed. It is noise of the test set and enters no p."
        )
    floors = [
        f"{metric.title} ±{format_difference(floor, percent=metric.percent).lstrip('+')}"
        for metric in metrics
        if (floor := analysis.floors.get(metric.key)) is not None
    ]
    if floors:
        lines.append(
            f"Noise floor, from the base and the base again (A/A): {', '.join(floors)}. Within noise: a difference "
            "smaller than that; a paired test may find it all the same, since pairing takes out what a seed does to "
            "both rows."
        )
    if any(figures.underpowered for numbers in analysis.rows for figures in numbers.figures.values()):
        lines.append(
            "Underpowered: not significant, in a study that could not have shown a difference of "
            f"{100 * study.smallest_effect:g} points."
        )
    lines += _power(study, analysis, metrics)
    settings: dict[str, list[str]] = {}
    for block in study.blocks:
        if block.paper is not None:
            settings.setdefault(block.paper.setting, []).append(block.paper.source)
    lines += [f"Paper: {'; '.join(dict.fromkeys(sources))}. {setting}" for setting, sources in settings.items()]
    if study.data == "shapes":
        lines.append(NOT_VOC)
    return (*lines, *study.notes, *analysis.notes)


def _power(study: StudyRecord, analysis: StudyAnalysis, metrics: tuple[TableMetric, ...]) -> list[str]:
    power = analysis.power
    if not power.comparisons or not math.isfinite(power.detectable_sd):
        return []
    text = (
        f"With {power.n} pairs and {power.comparisons} comparisons this study detects, at {100 * study.power:.0f} % "
        f"power, an effect of {power.detectable_sd:.1f} standard deviations of a paired difference"
    )
    points = [
        f"{metric.title} {_detectable(metric, found.detectable)}{' points' if metric.percent else ''}"
        for metric in metrics
        if (found := power.metrics.get(metric.key)) and found.detectable is not None and math.isfinite(found.detectable)
    ]
    return [f"{text}, which is {', '.join(points)}." if points else f"{text}."]


def _detectable(metric: TableMetric, value: float) -> str:
    # No two scores are further apart than 100 points.
    return ">100" if metric.percent and value > 1 else format_difference(value, percent=metric.percent).lstrip("+")
