"""Statistics of a study's report, each as one column.

Every format of the report prints these columns.

``COLUMNS`` is the only list. ``table.csv`` has the columns with a ``value``, in this order. The
terminal, Markdown, LaTeX and the page have the columns with a ``text``. To add a statistic, write a
function of numbers in ``sweeps.core.statistics``, and add a column to this list that calls it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sweeps.core.design.study import Metric, PlannedRow
from sweeps.core.findings.analysis import RowAnalysis
from sweeps.core.findings.comparisons import Figures
from sweeps.core.findings.look_states import Outcome
from sweeps.core.report.numbers import (
    format_difference,
    format_interval,
    format_p,
    format_value,
    without_negative_zero,
)
from sweeps.core.report.text_grid import Column, Mark, Place
from sweeps.core.store.study_record import StudyRecord, values_by_replicate
from toco.passwords import public_text


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of the table and one metric: the argument of the column functions."""

    study: StudyRecord
    row: PlannedRow
    numbers: RowAnalysis
    metric: Metric

    @property
    def figures(self) -> Figures:
        """Statistics that all formats of the report share."""
        return self.numbers.figures[self.metric.key]

    @property
    def values(self) -> dict[int, float]:
        """Metric values of the row's trials, by the index of the seed."""
        return values_by_replicate(self.study.trials_of(self.row), self.metric.key)

    @property
    def base(self) -> PlannedRow | None:
        """Row that this row is compared with; ``None`` for a base row."""
        return None if self.row.versus is None else self.study.rows[self.row.versus]

    @property
    def base_values(self) -> dict[int, float]:
        """Metric values of the base row's trials, by index of the seed; empty without a base."""
        if self.base is None:
            return {}
        return values_by_replicate(self.study.trials_of(self.base), self.metric.key)

    @property
    def mark(self) -> Mark:
        """Mark of the mean: the best of its column, the second best, or none."""
        return "best" if self.figures.bold else "second" if self.figures.underlined else ""


REMARKS: Mapping[Outcome, tuple[str]] = {
    "open": ("open",),
    "given up": ("not decidable",),
    "undecided": ("not decidable",),
    "no difference": ("no difference",),
    "not tested": ("not tested",),
}
"""Remark on a comparison of a sequential study, by the outcome of its claim."""

StatisticColumn = Column[Measurement]
"""A statistic of one row and one metric."""


def columns_of(place: Place, columns: Iterable[StatisticColumn]) -> tuple[StatisticColumn, ...]:
    """Return the columns of a table for people: those of a given place."""
    return tuple(column for column in columns if place in column.places)


def changes_text(changes: Mapping[str, Any]) -> str:
    """Format values by path as one line, without passwords in addresses.

    >>> changes_text({"method.aux_block": 9, "method.name": "toco"})
    'method.aux_block=9; method.name="toco"'
    """
    return public_text("; ".join(f"{path}={json.dumps(value)}" for path, value in changes.items()))


def _num_values(measurement: Measurement) -> int:
    return 0 if measurement.figures.summary is None else measurement.figures.summary.n


def _label_of_base(measurement: Measurement) -> str:
    return "" if measurement.base is None else measurement.base.label


def _mark(measurement: Measurement) -> str:
    return {"best": "bold", "second": "underlined"}.get(measurement.mark, "")


def _published(measurement: Measurement) -> float | None:
    paper = measurement.study.published(measurement.row)
    value = paper.metrics.get(measurement.metric.key) if paper else None
    return None if value is None else float(value)


def _cap(measurement: Measurement) -> int:
    sequential = measurement.study.sequential
    if sequential is None or measurement.row.role == "a/a":
        return measurement.numbers.planned
    return sequential.cap


def _of_claim(name: str) -> Callable[[Measurement], Any]:
    """Return a function that reads an attribute of the comparison's claim."""
    return lambda m: getattr(m.figures.claim, name, None)


def _number_of(statistics: str, name: str) -> Callable[[Measurement], float | None]:
    """Return a function that reads a number of ``Figures.summary``, ``paired`` or ``images``."""
    return lambda m: getattr(getattr(m.figures, statistics), name, None)


def mean_text(measurement: Measurement) -> str:
    """Format as ``mean ± standard deviation``; the mean alone for one seed, ``-`` for none."""
    summary, percent = measurement.figures.summary, measurement.metric.percent
    if summary is None:
        return "-"
    mean = format_value(summary.mean, percent=percent)
    return mean if summary.sd is None else f"{mean} ± {format_value(summary.sd, percent=percent)}"


def difference_text(measurement: Measurement) -> str:
    """Format the mean paired difference with its sign; ``-`` without pairs."""
    paired = measurement.figures.paired
    return (
        "-"
        if paired is None
        else format_difference(paired.difference, percent=measurement.metric.percent)
    )


def _mean_interval(m: Measurement) -> str:
    return format_interval(m.figures.summary, format_value, percent=m.metric.percent)


def _interval(m: Measurement) -> str:
    return format_interval(m.figures.paired, percent=m.metric.percent)


def _image_interval(m: Measurement) -> str:
    return format_interval(m.figures.images, percent=m.metric.percent)


def _effect_text(measurement: Measurement) -> str:
    paired = measurement.figures.paired
    if paired is None or paired.effect_size is None:
        return "-"
    return without_negative_zero(f"{paired.effect_size:+.2f}")


def remark_text(measurement: Measurement) -> str:
    """Return the remarks, such as ``underpowered, within noise``; empty without any.

    A comparison of a sequential study has the outcome of its claim, unless it was shown.
    """
    figures = measurement.figures
    remarks = ["underpowered"] if figures.underpowered else []
    if measurement.study.sequential is not None and figures.claim is not None:
        remarks += REMARKS.get(figures.claim.outcome, ())
    remarks += ["within noise"] if figures.below_noise_floor else []
    return ", ".join(remarks)


_VALUES: tuple[Place, ...] = ("values",)
_DIFFERENCES: tuple[Place, ...] = ("differences",)
_BOTH = _VALUES + _DIFFERENCES

COLUMNS: tuple[StatisticColumn, ...] = (
    Column("block", lambda m: m.study.blocks[m.row.block].title),
    Column(
        "row", lambda m: m.row.label, "row", lambda m: m.row.label, _DIFFERENCES, "left", wraps=True
    ),
    Column("role", lambda m: m.row.role),
    Column("versus", _label_of_base, "against", _label_of_base, _DIFFERENCES, "left", wraps=True),
    Column("changes", lambda m: changes_text(m.study.changes_of(m.row))),
    Column("metric", lambda m: m.metric.key, "metric", lambda m: m.metric.title, _BOTH, "left"),
    Column("declared", lambda m: "yes" if m.figures.declared else "no"),
    Column("planned", lambda m: m.numbers.planned),
    Column("n", _num_values, "n", lambda m: str(_num_values(m)), _VALUES),
    Column("mean", _number_of("summary", "mean"), "mean ± sd", mean_text, _VALUES),
    Column("sd", _number_of("summary", "sd")),
    Column("low", _number_of("summary", "low"), "95 % interval", _mean_interval, _VALUES),
    Column("high", _number_of("summary", "high")),
    Column("mark", _mark),
    Column("pairs", lambda m: m.figures.paired.n if m.figures.paired else 0),
    Column(
        "difference",
        _number_of("paired", "difference"),
        "difference",
        difference_text,
        _DIFFERENCES,
    ),
    Column("difference_low", _number_of("paired", "low"), "95 % interval", _interval, _DIFFERENCES),
    Column("difference_high", _number_of("paired", "high")),
    Column("p", _number_of("paired", "p")),
    Column(
        "p_holm",
        lambda m: m.figures.p_holm,
        "p",
        lambda m: format_p(m.figures.p_holm),
        _DIFFERENCES,
    ),
    Column("effect_size", _number_of("paired", "effect_size"), "d", _effect_text, _DIFFERENCES),
    Column("images_low", _number_of("images", "low"), "over images", _image_interval, _DIFFERENCES),
    Column("images_high", _number_of("images", "high")),
    Column("paper", _published),
    Column("differs_in", lambda m: "; ".join(m.numbers.confounders)),
    Column("cap", _cap),
    Column("looks", _of_claim("num_looks")),
    Column("boundary", _of_claim("boundary")),
    Column("outcome", _of_claim("outcome")),
    Column("remark", None, "", remark_text, _DIFFERENCES, "left", wraps=True),
)
"""All statistics, in the order in which they are printed."""
