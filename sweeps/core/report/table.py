"""The table of a study as words: one model that the terminal, Markdown, LaTeX and the page print.

Every number is formatted here and nowhere else, from ``sweeps.core.analysis``, so that all forms show the same digits:
percent with one digit, differences with two. ``table.csv`` is the form for programs: fractions with six digits.
Nothing here depends on when, where or by whom the study was run.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from sweeps.core.analysis import Analysis, Crossing, Figures, RowAnalysis
from sweeps.core.anova import Effect
from sweeps.core.image_noise import ImageInterval
from sweeps.core.statistics import Paired, Summary
from sweeps.core.study import Metric
from sweeps.core.study_record import CellRecord, RowRecord, StudyRecord, TrialRecord
from sweeps.core.verdict import Verdict

Mark = Literal["bold", "underlined", ""]

DIFFERENCE_HEADINGS = ("row", "against", "metric", "difference", "95 % interval", "p", "d", "over images", "")
"""Headings of the differences, see ``difference_texts``."""
TERM_HEADINGS = ("term", "df", "F", "p", "partial η²")
"""Headings of an analysis of variance, see ``TermsTable``."""

MEANINGS = {
    "val/cam_miou": "mIoU of the CAM of the last block",
    "val/aux_cam_miou": "mIoU of the auxiliary CAM, made from the tokens of the auxiliary block",
    "val/seg_miou": "mIoU of the decoder's segmentation",
    "val/patch_similarity_last": "mean cosine similarity of the patch tokens after the last block (1 = all the same)",
}
"""What a column shows, by key."""

NOT_VOC = (
    "Ours is measured on the embedded benchmark: small generated scenes and a small network. It is not PASCAL VOC: "
    "the size of its numbers says nothing beside the paper's; what can be compared is the order of the rows."
)
MAX_STATES = 50
"""Trials that are named one by one because they do not count."""


@dataclass(frozen=True, slots=True)
class Column:
    """A metric of the table.

    Attributes:
        key: Key of the metric.
        title: Heading.
        meaning: What it is and in which unit, in words.
        percent: Whether it is printed in percent.
    """

    key: str
    title: str
    meaning: str
    percent: bool


@dataclass(frozen=True, slots=True)
class Value:
    """What a row has under a metric.

    Attributes:
        mean: Mean over the seeds; ``-`` where there is none.
        sd: Sample standard deviation; ``None`` below two seeds.
        interval: t interval of the mean, as ``48.1 to 52.7``.
        n: Number of seeds behind it.
        mark: ``bold``: the best, or not distinguishable from it; ``underlined``: the second.
    """

    mean: str
    sd: str | None
    interval: str | None
    n: int
    mark: Mark

    @property
    def text(self) -> str:
        """``mean ± standard deviation``, without the second where one seed gives none."""
        return self.mean if self.sd is None else f"{self.mean} ± {self.sd}"


@dataclass(frozen=True, slots=True)
class Difference:
    """A row against the row it is compared with, under one metric, paired by seed.

    Attributes:
        column: The metric.
        declared: Whether the study declared it: only then it has a ``p`` that counts for anything.
        value: Mean difference with its sign.
        interval: Its t interval, as ``-0.31 to +1.20``; ``None`` below two pairs.
        p: Two-sided paired t test, corrected by Holm over all declared comparisons of the study.
        significant: Whether ``p`` is below the study's significance.
        effect: Standardised effect size.
        images: Interval over images, from the same trainings: noise of the test set, no part of ``p``.
        remark: ``underpowered`` where the study could not have shown its smallest effect, ``within noise`` where the
            difference is smaller than what differs between the base and the base again.
    """

    column: Column
    declared: bool
    value: str
    interval: str | None
    p: str | None
    significant: bool
    effect: str | None
    images: str | None
    remark: str


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of the table.

    Attributes:
        number: Its number in the study, over all blocks.
        label: First column.
        role: ``base``, ``row`` or ``a/a`` (the base once more with other seeds).
        versus: Label of the row it is compared with.
        values: One for each column.
        differences: One for each column that can be compared, in the columns' order.
        n: Seeds behind it, as ``3`` or, where some are missing, ``2 of 3``; ``3 (seg 2)`` where a metric of a finished
            trial is not a number.
        footnotes: Numbers of its daggers, see ``Table.footnotes``.
        paper_label: Label of the published row beside it.
        paper: The published values by key of the metric.
        verdict: What became of the published values, in a few words; empty where there are none.
    """

    number: int
    label: str
    role: Literal["base", "row", "a/a"]
    versus: str | None
    values: tuple[Value, ...]
    differences: tuple[Difference, ...]
    n: str
    footnotes: tuple[int, ...]
    paper_label: str | None
    paper: Mapping[str, str]
    verdict: str

    @property
    def marked_label(self) -> str:
        """The label with its daggers: ``#10 †1``."""
        return " ".join([self.label, *(f"†{number}" for number in self.footnotes)])

    def published(self, column: Column) -> str:
        """The paper's value; ``-`` where it has none."""
        return self.paper.get(column.key, "-")


@dataclass(frozen=True, slots=True)
class TableBlock:
    """Rows under one heading.

    Attributes:
        title: What varies.
        rows: In the study's order.
        compared: Columns whose comparisons are declared for this block; the other differences are told by the CSV.
        published: Columns that any published row of this block has.
        source: Where they are published, and how they were measured; empty where nothing is.
    """

    title: str
    rows: tuple[TableRow, ...]
    compared: tuple[Column, ...]
    published: tuple[Column, ...]
    source: str

    @property
    def against(self) -> str:
        """What the rows are compared with, in words: the base, or on a ladder the row above."""
        compared = [row for row in self.rows if row.role == "row"]
        of_base = {row.label for row in self.rows if row.role == "base"}
        if all(row.versus in of_base for row in compared):
            return "the base"
        above = dict(zip((row.label for row in self.rows[1:]), (row.label for row in self.rows), strict=False))
        return "the row above" if all(above.get(row.label) == row.versus for row in compared) else "another row"

    @property
    def renamed(self) -> bool:
        """Whether a row stands beside a published one of another label, so that the table must say which."""
        return any(row.paper_label not in (None, row.label) for row in self.rows)

    @property
    def differences(self) -> tuple[tuple[TableRow, Difference], ...]:
        """What is printed under the rows: their differences in the compared columns."""
        return tuple(
            (row, difference)
            for row in self.rows
            for difference in row.differences
            if difference.column in self.compared
        )


@dataclass(frozen=True, slots=True)
class TableClaim:
    """A claim of the paper and what became of it: a word (``underpowered``) and a sentence."""

    name: str
    outcome: str
    sentence: str


@dataclass(frozen=True, slots=True)
class PerClass:
    """IoU of every class under one metric, rows as in the table.

    Attributes:
        column: The metric.
        classes: Names, in the order of their numbers.
        rows: Label of the row, its means over the seeds and their differences to the row it is compared with.
    """

    column: Column
    classes: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...], tuple[str | None, ...]], ...]


@dataclass(frozen=True, slots=True)
class TermsTable:
    """An analysis of variance, a line a term under ``TERM_HEADINGS``; ``notes`` say what it leaves out and why."""

    title: str
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A study's table.

    Attributes:
        title: What the study is about.
        columns: Its metrics.
        blocks: Its rows, block by block.
        claims: The paper's claims.
        verdict: One sentence over all of them.
        warnings: Where a row holds at one value of another factor only.
        terms: Analyses of variance of blocks with several factors.
        footnotes: What the daggers say; ``†n`` is the n-th, counted from 1.
        states: Trials that do not count, and why, one sentence each.
        captions: What a reader must know, in sentences.
        per_class: One for each metric that has it.
    """

    title: str
    columns: tuple[Column, ...]
    blocks: tuple[TableBlock, ...]
    claims: tuple[TableClaim, ...]
    verdict: str
    warnings: tuple[str, ...]
    terms: tuple[TermsTable, ...]
    footnotes: tuple[str, ...]
    states: tuple[str, ...]
    captions: tuple[str, ...]
    per_class: tuple[PerClass, ...]


def difference_texts(row: TableRow, difference: Difference) -> tuple[str, ...]:
    """A difference as a line of text under ``DIFFERENCE_HEADINGS``."""
    return (
        row.label,
        row.versus or "",
        difference.column.title,
        difference.value,
        difference.interval or "-",
        difference.p or "-",
        difference.effect or "-",
        difference.images or "-",
        difference.remark,
    )


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


def printed(value: float, *, percent: bool) -> str:
    """A value as people read it: percent with one digit, or a plain number with three.

    >>> printed(0.705, percent=True), printed(0.705, percent=False)
    ('70.5', '0.705')
    """
    return _without_negative_zero(f"{100 * value:.1f}" if percent else f"{value:.3f}")


def printed_difference(value: float, *, percent: bool) -> str:
    """A difference with its sign: points with two digits, or a plain number with four.

    >>> printed_difference(-0.0123, percent=True), printed_difference(-1e-9, percent=True)
    ('-1.23', '0.00')
    """
    return _without_negative_zero(f"{100 * value:+.2f}" if percent else f"{value:+.4f}")


def printed_p(p: float | None) -> str | None:
    """A p value with three digits.

    >>> printed_p(0.0312), printed_p(0.0001)
    ('0.031', '<0.001')
    """
    if p is None:
        return None
    return "<0.001" if p < 0.0005 else f"{p:.3f}"


def is_percent(key: str) -> bool:
    """Whether a metric is a score in [0, 1], which is printed in percent."""
    return not any(part in key for part in ("similarity", "loss", "time", "bytes"))


def _without_negative_zero(text: str) -> str:
    return text.lstrip("+-") if float(text) == 0 else text


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
    row: RowRecord,
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
    paper = row.paper.metrics if row.paper else {}
    return TableRow(
        number=row.number,
        label=row.label,
        role=row.role,
        versus=None if row.versus is None else study.rows[row.versus].label,
        values=tuple(_value(column, numbers.figures[column.key]) for column in columns),
        differences=tuple(differences),
        n=_seeds(numbers, columns),
        footnotes=tuple(footnotes[f"{text}."] for text in numbers.daggers),
        paper_label=row.paper.label if row.paper else None,
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
        effect=None if paired.effect_size is None else _without_negative_zero(f"{paired.effect_size:+.2f}"),
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
        _end(cell, trial) for cell in study.cells for trial in cell.trials if trial.state in ("failed", "diverged")
    ]
    lines = ended[:MAX_STATES]
    if len(ended) > MAX_STATES:
        lines.append(f"{len(ended) - MAX_STATES} more failed or diverged.")
    pending = Counter(trial.state for trial in study.trials if trial.state in ("running", "waiting"))
    lines += [f"{count} of {len(study.trials)} trials {_verb(state, count)}." for state, count in pending.items()]
    return tuple(lines)


def _verb(state: str, count: int) -> str:
    return f"{'is' if count == 1 else 'are'} {state}"


def _end(cell: CellRecord, trial: TrialRecord) -> str:
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
        family = len(study.comparisons)
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
