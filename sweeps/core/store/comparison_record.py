"""The record of a comparison: rules and values, so that seeds cannot be added until a test fires.

``comparison.json`` in the output folder of ``python -m sweeps compare`` holds what decides: rows,
base, metrics, looks, margin and every value. A later comparison in the same folder must have the
same rules and the same values. More seeds are taken by the recorded looks, or refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sweeps.core.store.foreign_files import KindName
from sweeps.core.store.foreign_runs import ForeignRun, ForeignRuns
from sweeps.core.store.stored import Stored
from toco.files import check_version, printable, write_text

RECORD = "comparison.json"
FORMAT_VERSION = 1
NEW_FOLDER = "Another --output folder is a new comparison."
_RESTORE = (
    "Restore it from a copy, or give another --output folder, which is a new comparison: without "
    "the record, nothing shows which seeds were tested before."
)
_SCORE = re.compile(r"iou|acc|dice|jaccard|f1|precision|recall|auc|score|\bmap\b", re.IGNORECASE)
"""Names of metrics that are scores, which are printed in percent."""
_DIFFERENCES_NAMED = 5

Unit = Literal["percent", "fraction", "number"]
"""Unit of a metric's values: 63.5, 0.635 (both printed as 63.5), or a number without percent."""


@dataclass(frozen=True, slots=True)
class ComparedMetric:
    """A metric of a comparison.

    Attributes:
        key: Its name in the file.
        unit: Unit of its values in the file.
        higher_is_better: Whether larger values are better.
    """

    key: str
    unit: Unit
    higher_is_better: bool

    @property
    def scale(self) -> float:
        """Factor from the unit of the file to that of a study, in which scores are fractions."""
        return 0.01 if self.unit == "percent" else 1.0


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A row with the values that name it, by column."""

    label: str
    levels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A training: its row, its seed, and its values in the unit of the file."""

    row: str
    seed: int
    values: Mapping[str, float | None]
    diverged: str | None = None


class Comparison(Stored):
    """``comparison.json``: rules and values of a comparison.

    Attributes:
        kind: Kind of the file that the values came from.
        source: Name of that file or folder.
        row_columns: Columns that name the rows.
        seed_column: Column of the seeds.
        rows: The rows in the order of the table.
        base: Label of the row that the others are compared with.
        metrics: Metrics of the table; the first one is tested.
        looks: Numbers of seeds at which the comparisons are tested; ``None`` for one test of all
            seeds.
        margin: Differences of the tested metric below this value count as none, in the unit of the
            file; ``None`` without "no difference".
        significance: Family-wise error rate.
        seeds: Seeds in the order in which looks take them: ascending, later ones behind.
        recorded_with: Number of seeds when the comparison was recorded.
        runs: The trainings, row by row in the order of the seeds.
    """

    format_version: int
    kind: KindName
    source: str
    row_columns: tuple[str, ...]
    seed_column: str
    rows: tuple[ComparedRow, ...]
    base: str
    metrics: tuple[ComparedMetric, ...]
    looks: tuple[int, ...] | None
    margin: float | None
    significance: float
    seeds: tuple[int, ...]
    recorded_with: int
    runs: tuple[ComparedRun, ...]

    @property
    def digest(self) -> str:
        """SHA-256 (hex, 16 digits) of rules and values."""
        content = self.model_dump(mode="json", exclude={"format_version", "source", "kind"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def write(self, folder: Path) -> None:
        """Write the record of ``folder``; durable when this returns."""
        write_text(folder / RECORD, self.text())


def read_comparison(folder: Path) -> Comparison | None:
    """Read the record of an output folder; ``None`` where the folder is new or empty.

    Raises:
        ValueError: The record is damaged or of another version, or the folder holds other files.
    """
    path = folder / RECORD
    try:
        comparison = Comparison.read(path, _RESTORE)
    except FileNotFoundError:
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(
                f"{printable(folder)} is not empty and holds no {RECORD}. Give a new folder."
            ) from None
        return None
    check_version(path, comparison.format_version, FORMAT_VERSION, NEW_FOLDER)
    return comparison


def make_comparison(
    runs: ForeignRuns,
    *,
    base: str | None,
    units: Mapping[str, Unit],
    lower: Sequence[str],
    looks: tuple[int, ...] | None,
    margin: float | None,
    significance: float,
    before: Comparison | None,
) -> Comparison:
    """Make the comparison of ``runs``.

    Args:
        runs: The trainings.
        base: Label of the base row; ``None`` for the recorded one, or the first.
        units: Units by metric. Others are as recorded, or follow from name and values.
        lower: Metrics of which lower values are better.
        looks: Looks; ``None`` for the recorded ones, or for one test of all seeds.
        margin: Margin of no difference; ``None`` for the recorded one, or none.
        significance: Family-wise error rate.
        before: The recorded comparison of the same output folder.

    Raises:
        ValueError: A name is unknown, or ``before`` does not allow this comparison.
    """
    rows = {run.row: ComparedRow(run.row, run.levels) for run in runs.runs}
    for names, option in ((units, "--unit"), (lower, "--lower")):
        for name in names:
            if name not in runs.metrics:
                raise ValueError(
                    f"{option}: {printable(name)} is no metric of the table; the metrics are "
                    f"{', '.join(map(printable, runs.metrics))}."
                )
    if base is not None and base not in rows:
        raise ValueError(
            f"--base: there is no row {printable(base)}; the rows are "
            f"{', '.join(map(printable, rows))}."
        )
    recorded = {} if before is None else {metric.key: metric for metric in before.metrics}
    metrics = tuple(
        ComparedMetric(
            key,
            units.get(key) or (recorded[key].unit if key in recorded else _unit(key, runs.runs)),
            key not in lower if lower or key not in recorded else recorded[key].higher_is_better,
        )
        for key in runs.metrics
    )
    labels = list(rows) if before is None else _in_order(before, rows)
    order = _seed_order(before, {run.seed for run in runs.runs})
    ordered = sorted(runs.runs, key=lambda run: (labels.index(run.row), order.index(run.seed)))
    comparison = Comparison(
        format_version=FORMAT_VERSION,
        kind=runs.kind,
        source=runs.source,
        row_columns=runs.row_columns,
        seed_column=runs.seed_column,
        rows=tuple(rows[label] for label in labels),
        base=base or (labels[0] if before is None else before.base),
        metrics=metrics,
        looks=looks if looks is not None or before is None else before.looks,
        margin=margin if margin is not None or before is None else before.margin,
        significance=significance,
        seeds=order,
        recorded_with=len(order) if before is None else before.recorded_with,
        runs=tuple(ComparedRun(run.row, run.seed, run.values, run.diverged) for run in ordered),
    )
    if before is not None:
        _check_rules(before, comparison)
        _check_values(before, comparison)
    return comparison


def _in_order(before: Comparison, rows: Mapping[str, ComparedRow]) -> list[str]:
    """Return the labels of ``rows``, the recorded ones first and in their order."""
    recorded = [row.label for row in before.rows]
    return [*filter(rows.__contains__, recorded), *(row for row in rows if row not in recorded)]


def _seed_order(before: Comparison | None, seeds: set[int]) -> tuple[int, ...]:
    """Return the order in which looks take the seeds: recorded ones first, then ascending."""
    recorded = () if before is None else before.seeds
    return (*recorded, *sorted(seeds - set(recorded)))


def _unit(key: str, runs: Sequence[ForeignRun]) -> Unit:
    """Tell the unit of a metric from its name and its values."""
    values = [value for run in runs if (value := run.values[key]) is not None]
    if not _SCORE.search(key) or not values or min(values) < 0 or max(values) > 100:
        return "number"
    return "percent" if max(values) > 1 else "fraction"


def _check_rules(before: Comparison, now: Comparison) -> None:
    """Refuse another table, base or rule than the recorded one.

    Raises:
        ValueError: They differ.
    """
    for name, recorded, given in (
        ("rows", _labels(before), _labels(now)),
        ("columns of the rows", before.row_columns, now.row_columns),
        ("column of the seeds", before.seed_column, now.seed_column),
        ("base", before.base, now.base),
        ("metrics", _described(before), _described(now)),
        ("looks", before.looks, now.looks),
        ("margin", before.margin, now.margin),
    ):
        if recorded != given:
            raise ValueError(
                f"The comparison in this folder was recorded with other {name}: "
                f"{_shown(recorded)}, and now {_shown(given)}. A test that is chosen after its "
                f"result proves nothing. Give the recorded ones. {NEW_FOLDER}"
            )


def _check_values(before: Comparison, now: Comparison) -> None:
    """Refuse changed values, and more seeds without looks.

    Raises:
        ValueError: A recorded value has changed or is gone, or there are more seeds and no looks.
    """
    values = {(run.row, run.seed): run for run in now.runs}
    changed = []
    for run in before.runs:
        present = values.pop((run.row, run.seed), None)
        place = f"{printable(run.row)} with seed {run.seed}"
        if present is None:
            changed.append(f"{place} is gone")
        elif present.diverged != run.diverged:
            changed.append(f"{place} ended otherwise")
        else:
            changed += [
                f"{printable(key)} of {place} was {_shown(value)} and is "
                f"{_shown(present.values[key])}"
                for key, value in run.values.items()
                if present.values[key] != value
            ]
    if changed:
        more = len(changed) - _DIFFERENCES_NAMED
        text = "; ".join(changed[:_DIFFERENCES_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(
            f"Values of the recorded comparison have changed: {text}. A recorded training counts "
            f"as it is. Restore the values. {NEW_FOLDER}"
        )
    if values and before.looks is None:
        added = ", ".join(f"{printable(row)} with seed {seed}" for row, seed in list(values)[:3])
        raise ValueError(
            f"{len(values)} training{' is' if len(values) == 1 else 's are'} new ({added}), and "
            "the comparison in this folder is finished: it was recorded without --looks. "
            f"{PEEKING} {NEW_FOLDER} Declare --looks there before its first result."
        )


PEEKING = (
    "Adding seeds until something is significant finds a difference in about 18 % of the tables "
    "that have none (nine rows, tested after each of 3 to 10 seeds)."
)


def _labels(comparison: Comparison) -> tuple[str, ...]:
    return tuple(row.label for row in comparison.rows)


def _described(comparison: Comparison) -> tuple[str, ...]:
    return tuple(
        f"{metric.key} ({metric.unit}, {'higher' if metric.higher_is_better else 'lower'} is "
        "better)"
        for metric in comparison.metrics
    )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(printable(item) for item in value)
    return "none" if value is None else printable(value)
