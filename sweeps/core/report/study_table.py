"""The table of a study, from its record, its analysis and its verdict.

Nothing here depends on when, where or by whom the study was run.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from sweeps.core.design.study import Cell, Metric, PlannedRow
from sweeps.core.findings.analysis import Analysis, Crossing, Figures, RowAnalysis
from sweeps.core.findings.verdict import Verdict
from sweeps.core.report.table import (
    NOT_VOC,
    Column,
    Difference,
    Mark,
    PerClass,
    Table,
    TableBlock,
    TableClaim,
    TableRow,
    TermsTable,
    Value,
    is_percent,
    printed,
    printed_difference,
    printed_p,
    without_negative_zero,
)
from sweeps.core.statistics.anova import Effect
from sweeps.core.statistics.image_noise import ImageInterval
from sweeps.core.statistics.paired import Paired, Summary
from sweeps.core.store.study_record import StudyRecord, TrialRecord

MEANINGS = {
    "val/cam_miou": "mIoU of the CAM of the last block",
    "val/aux_cam_miou": "mIoU of the auxiliary CAM, made from the tokens of the auxiliary block",
    "val/seg_miou": "mIoU of the decoder's segmentation",
    "val/patch_similarity_last": "mean cosine similarity of the patch tokens after the last block (1 = all the same)",
}
"""What a column shows, by key."""
MAX_STATES = 50
"""Trials that are named one by one because they do not count."""


def study_table(study: StudyRecord, analysis: Analysis, verdict: Verdict) -> Table:
    """The table of a study as it stands, which may be unfinished."""
    columns = tuple(_column(metric) for metric in study.metrics)
    footnotes: dict[str, int] = {}
    for row in analysis.rows:
        for text in row.daggers:
            footnotes.setdefault(f"{text}.", len(footnotes) + 1)
    blocks = _blocks(study, analysis, verdict, columns, footnotes)
    claims = tuple(TableClaim(claim.name, claim.text, claim.sentence) for claim in verdict.claims)
    return Table(
        title=study.title,
        columns=columns,
        blocks=blocks,
        claims=claims,
        verdict=verdict.sentence,
        warnings=tuple(dict.fromkeys(warning for crossing in analysis.crossings for warning in crossing.warnings)),
        terms=tuple(_terms(crossing, study) for crossing in analysis.crossings),
        footnotes=tuple(footnotes),
        states=_states(study),
        captions=_captions(study, analysis, columns),
        per_class=_per_class(study, analysis, columns),
    )


def _column(metric: Metric) -> Column:
    percent = is_percent(metric.key)
    meaning = MEANINGS.get(metric.key, metric.key) + (", in percent" if percent else "")
    return Column(metric.key, metric.title, meaning, percent)


def _blocks(
    study: StudyRecord,
    analysis: Analysis,
    verdict: Verdict,
    columns: tuple[Column, ...],
    footnotes: Mapping[str, int],
) -> tuple[TableBlock, ...]:
    texts: dict[int, dict[str, str]] = {}
    for found in verdict.rows:
        texts.setdefault(found.row, {})[found.metric] = found.text
    rows: list[list[TableRow]] = [[] for _ in study.blocks]
    for row, numbers in zip(study.rows, analysis.rows, strict=True):
        rows[row.block].append(_row(study, row, numbers, columns, footnotes, texts.get(row.number, {})))
    blocks = []
    for block, of_block in zip(study.blocks, rows, strict=True):
        published = {key for row in of_block for key in row.paper}
        blocks.append(
            TableBlock(
                block.title,
                tuple(of_block),
                tuple(column for column in columns if column.key in block.metrics),
                tuple(column for column in columns if column.key in published),
                f"{block.paper.source}. {block.paper.setting}" if block.paper and published else "",
            )
        )
    return tuple(blocks)


def _row(
    study: StudyRecord,
    row: PlannedRow,
    numbers: RowAnalysis,
    columns: tuple[Column, ...],
    footnotes: Mapping[str, int],
    verdicts: Mapping[str, str],
) -> TableRow:
    differences = []
    for column in columns:
        figures = numbers.figures[column.key]
        if figures.paired is not None:
            differences.append(_difference(column, figures, figures.paired))
    paper_row = study.published(row)
    paper = paper_row.metrics if paper_row else {}
    return TableRow(
        number=row.number,
        label=row.label,
        role=row.role,
        versus=None if row.versus is None else study.rows[row.versus].label,
        values=tuple(_value(column, numbers.figures[column.key]) for column in columns),
        differences=tuple(differences),
        n=_seeds(numbers, columns),
        footnotes=tuple(footnotes[f"{text}."] for text in numbers.daggers),
        paper_label=row.paper_row,
        paper={c.key: printed(paper[c.key], percent=c.percent) for c in columns if c.key in paper},
        verdict=_row_verdict(columns, verdicts),
    )


def _value(column: Column, figures: Figures) -> Value:
    summary = figures.summary
    if summary is None:
        return Value("-", None, None, 0, "")
    mark: Mark = "bold" if figures.bold else "underlined" if figures.underlined else ""
    interval = None
    if summary.low is not None and summary.high is not None:
        interval = " to ".join(printed(value, percent=column.percent) for value in (summary.low, summary.high))
    sd = None if summary.sd is None else printed(summary.sd, percent=column.percent)
    return Value(printed(summary.mean, percent=column.percent), sd, interval, summary.n, mark)


def _difference(column: Column, figures: Figures, paired: Paired) -> Difference:
    remarks = ["underpowered"] if figures.underpowered else []
    remarks += ["within noise"] if figures.below_noise_floor else []
    return Difference(
        column=column,
        declared=figures.declared,
        value=printed_difference(paired.difference, percent=column.percent),
        interval=_interval(column, paired),
        p=printed_p(figures.p_holm),
        significant=figures.significant,
        effect=None if paired.effect_size is None else without_negative_zero(f"{paired.effect_size:+.2f}"),
        images=_interval(column, figures.images),
        remark=", ".join(remarks),
    )


def _interval(column: Column, found: Paired | ImageInterval | None) -> str | None:
    if found is None or found.low is None or found.high is None:
        return None
    return " to ".join(printed_difference(value, percent=column.percent) for value in (found.low, found.high))


def _seeds(numbers: RowAnalysis, columns: Iterable[Column]) -> str:
    """Shown beside every row, since a mean of one seed must not look like a mean of ten."""
    count = numbers.finished
    text = str(count) if count == numbers.planned else f"{count} of {numbers.planned}"
    fewer = [f"{column.title} {n}" for column, n in _missing(numbers, columns)]
    return f"{text} ({', '.join(fewer)})" if fewer else text


def _missing(numbers: RowAnalysis, columns: Iterable[Column]) -> list[tuple[Column, int]]:
    """Metrics that some finished trials of the row lack, with the number of those that have them."""
    summaries = [(column, numbers.figures[column.key].summary) for column in columns]
    return [(column, found.n) for column, found in summaries if found is not None and found.n < numbers.finished]


def _row_verdict(columns: Iterable[Column], verdicts: Mapping[str, str]) -> str:
    if len(set(verdicts.values())) <= 1:
        return next(iter(verdicts.values()), "")
    return "; ".join(f"{column.title} {verdicts[column.key]}" for column in columns if column.key in verdicts)


def _terms(crossing: Crossing, study: StudyRecord) -> TermsTable:
    title = next(metric.title for metric in study.metrics if metric.key == crossing.metric)
    lines = [
        (
            term.name,
            str(term.df),
            "-" if term.f is None else f"{term.f:.2f}",
            printed_p(term.p) or "-",
            "-" if term.partial_eta_squared is None else f"{term.partial_eta_squared:.3f}",
        )
        for term in crossing.anova.terms
    ]
    lines.append(("noise", str(crossing.anova.residual_df), "", "", ""))
    return TermsTable(
        f"{study.blocks[crossing.block].title}: analysis of variance of {title}",
        tuple(lines),
        (*crossing.anova.notes, *(_effect(effect, is_percent(crossing.metric)) for effect in crossing.effects)),
    )


def _effect(effect: Effect, percent: bool) -> str:
    """An effect in a two-level design with what it cannot be told from, as a sentence."""
    estimate = effect.estimate
    steps = ", ".join(
        f"{factor} from {low} to {high}" for factor, (low, high) in zip(effect.factors, effect.levels, strict=True)
    )
    interval = ""
    if estimate.low is not None and estimate.high is not None:
        ends = (printed_difference(end, percent=percent) for end in (estimate.low, estimate.high))
        interval = f" ({' to '.join(ends)})"
    mixed = f"; not told from {', '.join(' x '.join(alias) for alias in effect.aliases)}" if effect.aliases else ""
    kind = "Effect of" if len(effect.factors) == 1 else "Interaction of"
    return f"{kind} {steps}: {printed_difference(estimate.difference, percent=percent)}{interval}{mixed}."


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


def _captions(study: StudyRecord, analysis: Analysis, columns: tuple[Column, ...]) -> tuple[str, ...]:
    lines = [f"{column.title}: {column.meaning}." for column in columns]
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
        f"{column.title} ±{printed_difference(floor, percent=column.percent).lstrip('+')}"
        for column in columns
        if (floor := analysis.floors.get(column.key)) is not None
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
    lines += _power(study, analysis, columns)
    settings: dict[str, list[str]] = {}
    for block in study.blocks:
        if block.paper is not None:
            settings.setdefault(block.paper.setting, []).append(block.paper.source)
    lines += [f"Paper: {'; '.join(dict.fromkeys(sources))}. {setting}" for setting, sources in settings.items()]
    if study.data == "shapes":
        lines.append(NOT_VOC)
    return (*lines, *study.notes, *analysis.notes)


def _power(study: StudyRecord, analysis: Analysis, columns: tuple[Column, ...]) -> list[str]:
    power = analysis.power
    if not power.comparisons or not math.isfinite(power.detectable_sd):
        return []
    text = (
        f"With {power.n} pairs and {power.comparisons} comparisons this study detects, at {100 * study.power:.0f} % "
        f"power, an effect of {power.detectable_sd:.1f} standard deviations of a paired difference"
    )
    points = [
        f"{column.title} {_detectable(column, found.detectable)}{' points' if column.percent else ''}"
        for column in columns
        if (found := power.metrics.get(column.key)) and found.detectable is not None and math.isfinite(found.detectable)
    ]
    return [f"{text}, which is {', '.join(points)}." if points else f"{text}."]


def _detectable(column: Column, value: float) -> str:
    # No two scores are further apart than 100 points.
    return ">100" if column.percent and value > 1 else printed_difference(value, percent=column.percent).lstrip("+")


def _per_class(study: StudyRecord, analysis: Analysis, columns: tuple[Column, ...]) -> tuple[PerClass, ...]:
    tables = []
    for column in columns:
        rows = []
        names: tuple[str, ...] = ()
        for row, numbers in zip(study.rows, analysis.rows, strict=True):
            classes = numbers.classes.get(column.key, ())
            if not classes:
                continue
            names = tuple(found.name for found in classes)
            means = tuple(_mean(column, found.summary) for found in classes)
            against = tuple(
                None if found.paired is None else printed_difference(found.paired.difference, percent=column.percent)
                for found in classes
            )
            rows.append((row.label, means, against))
        if rows:
            tables.append(PerClass(column, names, tuple(rows)))
    return tuple(tables)


def _mean(column: Column, summary: Summary | None) -> str:
    return "-" if summary is None else printed(summary.mean, percent=column.percent)
