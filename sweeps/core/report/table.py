"""The table of a study: one row a cell, mean and standard deviation over seeds, the paper's row beside ours.

Fractions in files for programs (CSV), percent in what people read (text, Markdown, HTML).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import pandas as pd
from tabulate import tabulate

from sweeps.core.report.study_record import CellRecord, MetricRecord, StudyRecord

MEANINGS = {
    "val/cam_miou": "mIoU of the CAM of the last block",
    "val/aux_cam_miou": "mIoU of the auxiliary CAM, made from the tokens of the auxiliary block",
    "val/seg_miou": "mIoU of the decoder's segmentation",
    "val/patch_similarity_last": "mean cosine similarity of the patch tokens after the last block (1 = all the same)",
}
"""What a column shows, by key."""

FACTORS = {"aux_block": ("block", "the block that feeds the auxiliary classifier; #n counts from 1, the config from 0")}
"""Heading and meaning of a varied field, by its name."""

NOT_VOC = (
    "Ours is measured on the embedded benchmark: small generated scenes and a small network. It is not PASCAL VOC: "
    "the size of its numbers says nothing beside the paper's; what can be compared is the order of the rows."
)


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean over seeds, sample standard deviation (from two seeds on) and number of seeds."""

    mean: float
    std: float | None
    num_seeds: int


def summarise(values: list[float]) -> Summary | None:
    """Summary of ``values``; ``None`` of none.

    >>> summarise([0.25, 0.75])
    Summary(mean=0.5, std=0.3535533905932738, num_seeds=2)
    >>> summarise([0.5])
    Summary(mean=0.5, std=None, num_seeds=1)
    """
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), std, len(values))


def printed(value: float, metric: MetricRecord) -> str:
    """A value as people read it: percent with one digit, or a plain number with three."""
    return f"{100 * value:.1f}" if metric.is_percent else f"{value:.3f}"


def printed_summary(summary: Summary | None, metric: MetricRecord) -> str:
    """``mean ± standard deviation``, without the second where one seed gives none."""
    if summary is None:
        return "-"
    mean = printed(summary.mean, metric)
    return mean if summary.std is None else f"{mean} ± {printed(summary.std, metric)}"


def num_seeds(cell: CellRecord, study: StudyRecord) -> str:
    """Number of seeds behind a row; one number a metric where they differ.

    Shown beside every row, since a mean of one seed must not look like a mean of ten.
    """
    counts = [len(cell.metric(metric.key)) for metric in study.metrics]
    return str(counts[0]) if len(set(counts)) == 1 else "/".join(map(str, counts))


def paper_metrics(study: StudyRecord) -> tuple[MetricRecord, ...]:
    """The metrics that any published row of this study has."""
    return tuple(metric for metric in study.metrics if any(metric.key in cell.paper for cell in study.cells))


def row_heading(study: StudyRecord) -> str:
    """Heading of the first column: what varies."""
    return ", ".join(FACTORS.get(name, (name, ""))[0] for name in study.factor_names) or "recipe"


def meanings(study: StudyRecord) -> list[tuple[str, str]]:
    """Headings of the table with what they stand for."""
    factors = [FACTORS[name] for name in study.factor_names if name in FACTORS]
    metrics = [
        (metric.title, MEANINGS.get(metric.key, metric.key) + (", in percent" if metric.is_percent else ""))
        for metric in study.metrics
    ]
    return [*factors, *metrics]


def text_table(study: StudyRecord, style: str) -> str:
    """The table in percent, in a style of ``tabulate`` (``simple`` for a terminal, ``pipe`` for Markdown)."""
    published = paper_metrics(study)
    headers = [row_heading(study), *(metric.title for metric in study.metrics), "n"]
    if published:
        headers += ["paper's row", *(f"paper {metric.title}" for metric in published)]
    rows = []
    for cell in study.cells:
        row = [cell.label]
        row += [printed_summary(summarise(cell.metric(metric.key)), metric) for metric in study.metrics]
        row += [num_seeds(cell, study)]
        if published:
            row += [cell.paper_label or "-"]
            row += [printed(cell.paper[m.key], m) if m.key in cell.paper else "-" for m in published]
        rows.append(row)
    right = ["left", *("right" for _ in headers[1:])]
    return tabulate(rows, headers=headers, tablefmt=style, colalign=right, disable_numparse=True)


def captions(study: StudyRecord) -> list[str]:
    """What a reader of the table must know, in sentences."""
    lines = [f"{heading}: {meaning}." for heading, meaning in meanings(study)]
    lines += ["Mean ± sample standard deviation over n seeds; n = 1 has no spread."]
    if paper_metrics(study):
        lines += [f"Paper: {study.paper_source}. {study.paper_setting}"]
    if study.data == "shapes":
        lines += [NOT_VOC]
    return lines + study.remarks


def finding(study: StudyRecord) -> str | None:
    """The best row by the first metric and how far the next one is, measured against the spread of the seeds."""
    metric = study.metrics[0]
    summaries = {cell.label: summary for cell in study.cells if (summary := summarise(cell.metric(metric.key)))}
    if len(summaries) < 2:
        return None
    order = sorted(summaries, key=lambda label: summaries[label].mean, reverse=True)
    best, second = summaries[order[0]], summaries[order[1]]
    text = (
        f"Highest {metric.title}: {order[0]} with {printed_summary(best, metric)}, "
        f"then {order[1]} with {printed_summary(second, metric)}."
    )
    if best.std is None or second.std is None:
        return text + " With one seed a row nothing is known about the spread, so the order may be chance."
    gap, spread = best.mean - second.mean, max(best.std, second.std)
    verdict = "more" if gap > spread else "no more"
    told_apart = "" if gap > spread else ": these seeds do not tell the two apart"
    return text + (
        f" The gap of {printed(gap, metric)} is {verdict} than the larger of their standard deviations "
        f"({printed(spread, metric)}){told_apart}."
    )


def data_frame(study: StudyRecord) -> pd.DataFrame:
    """The table for programs: fractions, empty where there is no number."""
    rows = []
    for cell in study.cells:
        row: dict[str, object] = {"row": cell.label, **cell.values}
        for metric in study.metrics:
            summary = summarise(cell.metric(metric.key))
            row[f"{metric.key}_mean"] = summary.mean if summary else None
            row[f"{metric.key}_std"] = summary.std if summary else None
            row[f"{metric.key}_n"] = summary.num_seeds if summary else 0
        row["n_planned"] = len(cell.trials)
        row["paper_row"] = cell.paper_label
        for metric in paper_metrics(study):
            row[f"{metric.key}_paper"] = cell.paper.get(metric.key)
        rows.append(row)
    return pd.DataFrame(rows)
