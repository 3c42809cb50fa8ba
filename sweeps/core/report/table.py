"""Table of a study: rows, comparisons and sentences, which all formats print.

The table does not depend on when, where or by whom the study was run. The same results give the
same bytes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Cell, Metric, PlannedRow
from sweeps.core.findings.analysis import RowAnalysis, StudyAnalysis
from sweeps.core.findings.look_states import Looks
from sweeps.core.findings.verdict import ClaimVerdict, Verdict
from sweeps.core.report.columns import COLUMNS, Measurement, StatisticColumn, columns_of, mean_text
from sweeps.core.report.numbers import format_difference, format_for_program, format_value, points
from sweeps.core.report.text_grid import TextCell, TextColumn, TextGrid, columns_csv
from sweeps.core.statistics.paired import CONFIDENCE
from sweeps.core.store.study_record import StudyRecord, TrialRecord
from toco.evaluate.report import map_of, title_of

LEGEND = "Bold: the best, or not distinguishable from it; underlined: the second."
NOT_VOC = (
    "These results are measured on the embedded benchmark: small generated scenes and a small "
    "network. It is not PASCAL VOC: its numbers are not comparable with the paper's; "
    "only the order of the rows is."
)
"""Caption of a study on the embedded benchmark; the page highlights it."""
MEANINGS = {
    "val/cam_miou": "mIoU of the CAM of the last block",
    "val/aux_cam_miou": "mIoU of the auxiliary CAM, made from the tokens of the auxiliary block",
    "val/cam_best_miou": (
        "mIoU of the CAM at the threshold that is best on the scored masks, which no user has"
    ),
    "val/seg_miou": "mIoU of the decoder's segmentation",
    "val/patch_similarity_last": (
        "mean cosine similarity of the patch tokens after the last block (1 = all the same)"
    ),
    "step_time_s": "mean seconds of a training step, beside what else ran",
    "peak_memory_gb": "peak memory of the training in GB: of its GPU, or else of its process",
    "parameters_m": "millions of numbers in the network's parameters, trained or frozen",
}
"""Explanation of each metric, by key."""
MAX_STATES = 50
"""Largest number of failed and diverged trials that are listed one by one.

More of them have few causes in common, which the page groups.
"""


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of the table.

    Attributes:
        planned: Row of the study.
        versus: Label of the base row.
        measurements: One measurement for each metric of the table.
        n: Number of seeds as text: ``3``, or ``2 of 3`` if trials are missing. ``3 (seg 2)`` if a
            metric of a finished trial is not a number.
        footnotes: Numbers of the row's daggers, see ``StudyTable.footnotes``.
        paper: Published values by metric key.
        verdict: Outcome for the published values in a few words; empty without such values.
    """

    planned: PlannedRow
    versus: str | None
    measurements: tuple[Measurement, ...]
    n: str
    footnotes: tuple[int, ...]
    paper: Mapping[str, str]
    verdict: str

    @property
    def comparisons(self) -> tuple[Measurement, ...]:
        """Measurements with a difference from the base row."""
        return tuple(
            measurement
            for measurement in self.measurements
            if measurement.figures.paired is not None
        )

    def published(self, metric: Metric) -> str:
        """Return the paper's value as text; ``-`` if the paper has none."""
        return self.paper.get(metric.key, "-")


@dataclass(frozen=True, slots=True)
class TableBlock:
    """Rows under one heading.

    Attributes:
        title: The factor that varies.
        rows: Rows in the study's order.
        compared: Metrics whose comparisons are declared for this block. Other differences are in
            the CSV only.
        published: Metrics that at least one published row of this block has.
    """

    title: str
    rows: tuple[TableRow, ...]
    compared: tuple[Metric, ...]
    published: tuple[Metric, ...]

    @property
    def against(self) -> str:
        """The compared rows as text: "the base" or, for a ladder, "the row above"."""
        compared = [row for row in self.rows if row.planned.role == "row"]
        of_base = {row.planned.label for row in self.rows if row.planned.role == "base"}
        if all(row.versus in of_base for row in compared):
            return "the base"
        above = dict(
            zip(
                (row.planned.label for row in self.rows[1:]),
                (row.planned.label for row in self.rows),
                strict=False,
            )
        )
        return (
            "the row above"
            if all(above.get(row.planned.label) == row.versus for row in compared)
            else "another row"
        )

    @property
    def renamed(self) -> bool:
        """Whether a row corresponds to a published row with another label.

        The table must then print the label of the published row.
        """
        return any(row.planned.paper_row not in (None, row.planned.label) for row in self.rows)

    @property
    def comparisons(self) -> tuple[Measurement, ...]:
        """Differences of the compared metrics, which are printed below the rows."""
        return tuple(
            measurement
            for row in self.rows
            for measurement in row.comparisons
            if measurement.metric in self.compared
        )


@dataclass(frozen=True, slots=True)
class StudyTable:
    """Table of a study.

    Attributes:
        title: Title of the study.
        columns: Statistics to print.
        metrics: Metrics of the table.
        blocks: Rows, block by block.
        claims: Outcomes for the paper's claims.
        verdict: Summary of the outcomes, one sentence.
        warnings: Sentences about rows that hold at one value of another factor only.
        footnotes: Texts of the daggers; ``†n`` is the n-th, counted from 1.
        states: Trials without a result with the reason, one sentence each.
        captions: Explanations that a reader needs, as sentences.
    """

    title: str
    columns: tuple[StatisticColumn, ...]
    metrics: tuple[Metric, ...]
    blocks: tuple[TableBlock, ...]
    claims: tuple[ClaimVerdict, ...]
    verdict: str
    warnings: tuple[str, ...]
    footnotes: tuple[str, ...]
    states: tuple[str, ...]
    captions: tuple[str, ...]

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """All rows and metrics, in the study's order."""
        rows = sorted(
            (row for block in self.blocks for row in block.rows), key=lambda row: row.planned.number
        )
        return tuple(measurement for row in rows for measurement in row.measurements)


def rows_grid(table: StudyTable, block: TableBlock, like: Sequence[TableBlock] = ()) -> TextGrid:
    """Make the grid of a block's rows.

    A row has its label, means, number of seeds, the paper's values and the verdict.

    Args:
        table: Table of the study.
        block: The block.
        like: Blocks whose columns this block must have, too, so that LaTeX can print all of them as
            one table.
    """
    rows, blocks = block.rows, like or [block]
    labels = [TextCell(row.planned.label, footnotes=row.footnotes) for row in rows]
    columns = [(TextColumn(block.title, wraps=True), labels)]
    for index, metric in enumerate(table.metrics):
        look = TextColumn(metric.title, "right", over="ours", under=metric.title)
        measurements = [row.measurements[index] for row in rows]
        columns.append(
            (
                look,
                [
                    TextCell(mean_text(measurement), measurement.mark)
                    for measurement in measurements
                ],
            )
        )
    columns.append(
        (TextColumn("n", "right", over="ours", under="n"), [TextCell(row.n) for row in rows])
    )
    if any(other.renamed for other in blocks):
        look = TextColumn("paper's row", "right", over="paper", under="row")
        columns.append((look, [TextCell(row.planned.paper_row or "-") for row in rows]))
    published = [
        metric for metric in table.metrics if any(metric in other.published for other in blocks)
    ]
    for metric in published:
        look = TextColumn(f"paper {metric.title}", "right", over="paper", under=metric.title)
        columns.append(
            (
                look,
                [
                    TextCell(row.published(metric) if metric in block.published else "")
                    for row in rows
                ],
            )
        )
    if published:
        look = TextColumn("verdict", wraps=True, over="verdict")
        columns.append((look, [TextCell(row.verdict) for row in rows]))
    looks, cells = zip(*columns, strict=True)
    return TextGrid(looks, tuple(zip(*cells, strict=True)), group=block.title)


def differences_grid(table: StudyTable, block: TableBlock) -> TextGrid:
    """Make the grid of a block's declared comparisons, one line each."""
    columns = columns_of("differences", table.columns)
    lines = tuple(
        tuple(
            TextCell(
                column.print(measurement), "significant" if measurement.figures.significant else ""
            )
            for column in columns
        )
        for measurement in block.comparisons
    )
    return TextGrid(tuple(column.look for column in columns), lines, group=block.title)


def claims_grid(table: StudyTable) -> TextGrid:
    """Make the grid of the paper's claims with their outcomes."""
    columns = tuple(
        TextColumn(heading, wraps=True) for heading in ("the paper's claim", "outcome", "because")
    )
    lines = tuple(
        (TextCell(claim.name), TextCell(claim.text, "strong"), TextCell(claim.sentence))
        for claim in table.claims
    )
    return TextGrid(columns, lines)


def table_csv(table: StudyTable) -> str:
    """Make ``table.csv``: one line for each row and metric.

    Numbers have six digits after the point.

    A missing number is empty. ``rebuild_table`` computes the same lines from the raw values without
    any code of this project.
    """
    return columns_csv(table.columns, table.measurements, format_for_program)


def study_table(
    study: StudyRecord,
    analysis: StudyAnalysis,
    verdict: Verdict,
    columns: tuple[StatisticColumn, ...] = COLUMNS,
) -> StudyTable:
    """Make the table of a study in its current state, finished or not.

    Args:
        study: The study.
        analysis: Numbers of the study.
        verdict: Comparison with the paper.
        columns: Statistics to print.
    """
    footnotes: dict[str, int] = {}
    for row in analysis.rows:
        for text in row.confounders:
            footnotes.setdefault(f"{text}.", len(footnotes) + 1)
    return StudyTable(
        title=study.title,
        columns=columns,
        metrics=study.metrics,
        blocks=tuple(
            _block(study, number, analysis, verdict, footnotes)
            for number in range(len(study.blocks))
        ),
        claims=verdict.claims,
        verdict=verdict.sentence,
        warnings=tuple(
            dict.fromkeys(
                warning for crossing in analysis.crossings for warning in crossing.warnings
            )
        ),
        footnotes=tuple(footnotes),
        states=_states(study),
        captions=(*_captions(study, analysis), *(column.note for column in columns if column.note)),
    )


def _block(
    study: StudyRecord,
    number: int,
    analysis: StudyAnalysis,
    verdict: Verdict,
    footnotes: Mapping[str, int],
) -> TableBlock:
    block = study.blocks[number]
    rows = tuple(
        _row(study, row, numbers, verdict, footnotes)
        for row, numbers in zip(study.rows, analysis.rows, strict=True)
        if row.block == number
    )
    return TableBlock(
        block.title,
        rows,
        compared=tuple(metric for metric in study.metrics if metric.key in block.metrics),
        published=tuple(
            metric for metric in study.metrics if any(metric.key in row.paper for row in rows)
        ),
    )


def _row(
    study: StudyRecord,
    row: PlannedRow,
    numbers: RowAnalysis,
    verdict: Verdict,
    footnotes: Mapping[str, int],
) -> TableRow:
    paper_row = study.published(row)
    paper = paper_row.metrics if paper_row else {}
    verdicts = {
        row_verdict.metric: row_verdict.text
        for row_verdict in verdict.rows
        if row_verdict.row == row.number
    }
    return TableRow(
        planned=row,
        versus=None if row.versus is None else study.rows[row.versus].label,
        measurements=tuple(Measurement(study, row, numbers, metric) for metric in study.metrics),
        n=_seeds(numbers, study.metrics),
        footnotes=tuple(footnotes[f"{text}."] for text in numbers.confounders),
        paper={
            metric.key: format_value(paper[metric.key], percent=metric.percent)
            for metric in study.metrics
            if metric.key in paper
        },
        verdict=_row_verdict(study.metrics, verdicts),
    )


def _seeds(numbers: RowAnalysis, metrics: Iterable[Metric]) -> str:
    """Format the number of seeds.

    Every row shows it, because a mean of one seed must not look like a mean of ten.
    """
    count = numbers.finished
    text = str(count) if count == numbers.planned else f"{count} of {numbers.planned}"
    summaries = [(metric, numbers.figures[metric.key].summary) for metric in metrics]
    fewer = [
        f"{metric.title} {summary.n}"
        for metric, summary in summaries
        if summary and summary.n < count
    ]
    return f"{text} ({', '.join(fewer)})" if fewer else text


def _row_verdict(metrics: Iterable[Metric], verdicts: Mapping[str, str]) -> str:
    if len(set(verdicts.values())) <= 1:
        return next(iter(verdicts.values()), "")
    return "; ".join(
        f"{metric.title} {verdicts[metric.key]}" for metric in metrics if metric.key in verdicts
    )


def _states(study: StudyRecord) -> tuple[str, ...]:
    failures = [
        _end(cell, trial)
        for cell, trials in zip(study.cells, study.trials_by_cell, strict=True)
        for trial in trials
        if trial.state in ("failed", "diverged")
    ]
    lines = failures[:MAX_STATES]
    if len(failures) > MAX_STATES:
        lines.append(f"{len(failures) - MAX_STATES} more failed or diverged.")
    pending = Counter(
        trial.state for trial in study.trials if trial.state in ("running", "waiting")
    )
    lines += [
        f"{count} of {len(study.trials)} trials {'is' if count == 1 else 'are'} {state}."
        for state, count in pending.items()
    ]
    return tuple(lines)


def _end(cell: Cell, trial: TrialRecord) -> str:
    """Describe the end of a trial.

    Of a traceback, only the name of the exception is printed: the text may contain paths.
    """
    name = f"{cell.label}, seed {trial.seed}"
    if trial.state == "diverged":
        return f"{name}: diverged. {trial.message or ''}".rstrip()
    last = (trial.message or "").strip().rpartition("\n")[2]
    kind = re.match(r"[\w.]+", last)
    return f"{name}: failed{f' ({kind[0]})' if kind else ''}."


def _captions(study: StudyRecord, analysis: StudyAnalysis) -> tuple[str, ...]:
    # The metrics and the statistics of a row.
    lines = [f"{metric.title}: {_meaning(metric)}." for metric in study.metrics]
    lines.append("Mean ± sample standard deviation over n seeds; n = 1 has no spread.")
    # The comparisons: p values, intervals over images, noise floor, power.
    if study.sequential is not None:
        lines += _looks(study, analysis.looks, study.sequential)
    elif any(row.paired for numbers in analysis.rows for row in numbers.figures.values()):
        family = len(study.tests.claims)
        lines.append(
            "Differences are paired by seed, with their t interval; p: two-sided paired t test "
            f"after Holm's correction over the {family} declared "
            f"comparison{'' if family == 1 else 's'} of the study; d: the difference in standard "
            "deviations of the differences (Hedges)."
        )
    if any(figures.images for numbers in analysis.rows for figures in numbers.figures.values()):
        lines.append(
            "Over images: the interval that another draw of test images would give, by a paired "
            "bootstrap with fixed trained networks. "
            "It is noise of the test set; no p value depends on it."
        )
    floors = [
        f"{metric.title} ±{format_difference(floor, percent=metric.percent).lstrip('+')}"
        for metric in study.metrics
        if (floor := analysis.floors.get(metric.key)) is not None
    ]
    if floors:
        lines.append(
            f"Noise floor, from the base and the base again (A/A): {', '.join(floors)}. Within "
            "noise: a difference smaller than that; a paired test may still detect it, because "
            "pairing removes the effect that a seed has on both rows."
        )
    if any(
        figures.underpowered for numbers in analysis.rows for figures in numbers.figures.values()
    ):
        lines.append(
            "Underpowered: not significant, in a study that could not have shown a difference of "
            f"{100 * study.smallest_effect:g} points."
        )
    lines += _power(study, analysis)
    # The setting of the paper, and of this study.
    settings: dict[str, list[str]] = {}
    for block in study.blocks:
        if block.paper is not None:
            settings.setdefault(block.paper.setting, []).append(block.paper.source)
    lines += [
        f"Paper: {'; '.join(dict.fromkeys(sources))}. {setting}"
        for setting, sources in settings.items()
    ]
    if study.data == "shapes":
        lines.append(NOT_VOC)
    return (*lines, *study.notes, *analysis.notes)


def _looks(study: StudyRecord, looks: Looks, rules: Sequential) -> list[str]:
    """Explain the tests of a sequential study, as sentences."""
    level = f"{100 * study.significance:g} %"
    after = ", ".join(map(str, rules.looks[:-1]))
    after = f"{after} and {rules.cap}" if after else str(rules.cap)
    lines = [
        "Rows get seeds while a claim that needs them is open, so n differs between rows. Means "
        "are over all seeds of a row.",
        f"The study tests {_claims(len(looks.claims))} after {after} seeds. "
        f"The probability of any false one, over all claims and looks, is at most {level}. After n "
        f"seeds, a claim has spent (n / {rules.cap})^{rules.spending:g} of its level; the "
        "boundaries of the paired t tests are exact.",
        "A claim is shown when each of its comparisons has crossed the boundary in the claimed "
        "direction, or in either if it names none."
        + (
            " The opposite sign of one comparison counts after Bonferroni's correction over the "
            "comparisons of its claim."
            if any(len(claim.comparisons) > 1 for claim in looks.claims)
            else ""
        ),
        "p of a comparison in a claim: its sequential p value after Holm's correction over the "
        "claims. A sequential p value is the smallest level at which the two-sided test has "
        "crossed its boundary at a look so far.",
        f"The interval of such a comparison is the repeated {100 * CONFIDENCE:g} % interval of its "
        "last look: it covers the true difference at all looks together.",
        "A comparison in no claim has no test. Its interval is the plain t interval over the first "
        f"{looks.common} seeds, which all rows have. d: the difference in standard deviations of "
        "the differences (Hedges).",
        "Bold, underlined, noise floor, analysis of variance, scores by class and intervals over "
        f"images use the first {looks.common} seeds of each row, too. An interval over images need "
        "therefore not contain the difference of a claim, which can be over more seeds.",
    ]
    futility = rules.futility
    lines.append(
        "No claim is given up before the last look."
        if futility is None
        else f"From {futility.from_seeds} seeds on, a claim is given up if the upper "
        f"{100 * futility.confidence:g} % bound of an effect lies below the effect that "
        f"{rules.cap} seeds show with {100 * futility.power:g} % power. Its outcome is not "
        "decidable, which is not the same as no effect."
    )
    if study.margin is not None:
        margin = points(study.margin, percent=study.tests_scores)
        lines.append(
            f"No difference: all differences of a claim are smaller than {margin}, "
            "with their repeated intervals at the level of the claim."
        )
    lines.append(
        "A claim that needs a training that diverged is not tested."
        if rules.diverged_value is None
        else f"In tests, a training that diverged has the value {rules.diverged_value:g}; means "
        "leave it out."
    )
    return lines


def _power(study: StudyRecord, analysis: StudyAnalysis) -> list[str]:
    power = analysis.power
    if not power.comparisons or not math.isfinite(power.detectable_sd):
        return []
    # The test after the cap alone would detect this: the looks before it cost a little.
    limits = (
        f"With {power.n} pairs and {power.comparisons} comparisons this study detects"
        if study.sequential is None
        else f"With {power.n} seeds, the cap, and {_claims(power.comparisons)} this study detects "
        "at best"
    )
    text = (
        f"{limits}, at {100 * study.power:.0f} % power, an effect of {power.detectable_sd:.1f} "
        "standard deviations of a paired difference"
    )
    points = [
        f"{metric.title} {_detectable(metric, metric_power.detectable)}"
        f"{' points' if metric.percent else ''}"
        for metric in study.metrics
        if (metric_power := power.metrics.get(metric.key))
        and metric_power.detectable is not None
        and math.isfinite(metric_power.detectable)
    ]
    return [f"{text}, which is {', '.join(points)}." if points else f"{text}."]


def _claims(number: int) -> str:
    return f"{number} claim{'' if number == 1 else 's'}"


def _detectable(metric: Metric, value: float) -> str:
    # Two scores differ by at most 100 points.
    return (
        ">100"
        if metric.percent and value > 1
        else format_difference(value, percent=metric.percent).lstrip("+")
    )


def _meaning(metric: Metric) -> str:
    """Explain the metric and its unit."""
    of_map = map_of(metric.key)
    derived = metric.key if of_map is None else f"mIoU of the {title_of(of_map)}"
    return MEANINGS.get(metric.key, derived) + (", in percent" if metric.percent else "")
