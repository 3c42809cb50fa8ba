"""Results of trainings that no study ran, as one list of runs with row, seed and metrics."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.core.store.foreign_files import (
    RECIPE,
    Kind,
    KindName,
    Line,
    count_text,
    read_file,
    read_folder,
)
from toco.files import printable

_SEEDS = ("seed", "random_seed")
"""Last parts of the names of columns that hold seeds."""
_ROW = "row"
_COLUMNS_NAMED = 30
"""Number of columns that a message lists: exports have hundreds."""


@dataclass(frozen=True, slots=True)
class ForeignRun:
    """One training.

    Attributes:
        place: Where it stands, such as ``line 3``.
        row: Label of its row.
        levels: Values of the columns that name the row, by column.
        seed: Its seed.
        values: Values as given, by metric; ``None`` for one that it lacks.
        diverged: How it diverged; ``None`` unless its run folder says so.
        run_dir: Its run folder; ``None`` for a line of a table.
        config: Config in the run folder; empty for a line of a table.
        provenance: Provenance in the run folder; empty for a line of a table.
    """

    place: str
    row: str
    levels: Mapping[str, str]
    seed: int
    values: Mapping[str, float | None]
    diverged: str | None = None
    run_dir: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ForeignRuns:
    """Results from outside of a study.

    Attributes:
        kind: Kind of the file or folder.
        source: Name of the file or folder.
        row_columns: Columns that name the rows.
        seed_column: Column of the seeds.
        metrics: Metrics of the table.
        runs: The trainings in their order. Their rows are in the order of the first training.
        detected: The kind, and the columns that are used, as a sentence.
        remarks: What was left out, as sentences.
        recipe: Recipe of run folders; empty if unknown.
        data: Data set of run folders; empty if unknown.
    """

    kind: KindName
    source: str
    row_columns: tuple[str, ...]
    seed_column: str
    metrics: tuple[str, ...]
    runs: tuple[ForeignRun, ...]
    detected: str
    remarks: tuple[str, ...]
    recipe: str = ""
    data: str = ""


def read_runs(
    path: Path,
    row_columns: Sequence[str] = (),
    seed_column: str | None = None,
    metrics: Sequence[str] = (),
) -> ForeignRuns:
    """Read the trainings of a CSV file, or of a folder of run folders.

    Args:
        path: The file or folder.
        row_columns: Columns that name the rows; empty to find them.
        seed_column: Column of the seeds; ``None`` to find it.
        metrics: Metrics of the table; empty for all.

    Raises:
        ValueError: A column is unknown or cannot be found, a value is no number, a training occurs
            twice, or nothing can be compared.
    """
    table_lines, columns, kind = read_folder(path) if path.is_dir() else read_file(path)
    remarks: list[str] = []
    lines = _finished(path, table_lines, kind, remarks)
    seed = _seed_column(path, columns, seed_column)
    lines = _seeded(path, lines, seed, kind, remarks)
    rows = _row_columns(path, columns, lines, kind, seed, row_columns)
    keys = _metrics(path, columns, lines, kind, rows, seed, metrics)
    runs = tuple(_run(line, rows, seed, keys) for line in lines)
    _check(path, runs)
    titles = tuple(map(_title, rows))
    return ForeignRuns(
        kind.name,
        path.resolve().name,
        rows,
        seed,
        tuple(keys),
        runs,
        f"{printable(path)} is {kind.text}: {count_text(len(runs), 'training')} in "
        f"{count_text(len({run.row for run in runs}), 'row')} by {', '.join(titles)}, "
        f"seeds from {seed}.",
        tuple(remarks),
        **_setting(lines),
    )


def _setting(lines: Sequence[Line]) -> dict[str, str]:
    """Return recipe and data set of run folders that have the same; else empty texts."""
    recipes = {line.cells.get(RECIPE, "") for line in lines}
    data = {line.config.get("data", {}).get("name", "") for line in lines}
    return {
        "recipe": recipes.pop() if len(recipes) == 1 else "",
        "data": data.pop() if len(data) == 1 else "",
    }


def _finished(path: Path, lines: Sequence[Line], kind: Kind, remarks: list[str]) -> Sequence[Line]:
    """Leave out runs that have not finished, and order the others by their start."""
    if kind.state is not None:
        column, value = kind.state
        states = Counter(line.cells[column] for line in lines if line.cells[column] != value)
        lines = [line for line in lines if line.cells[column] == value]
        if states:
            left_out = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
            remarks.append(f"Runs that have not finished are left out: {printable(left_out)}.")
        if not lines:
            raise ValueError(
                f"No run in {printable(path)} has finished: {printable(left_out)}. Finish the "
                "trainings, or write their values into a table with columns row, seed and metrics."
            )
    time = kind.time
    return lines if time is None else sorted(lines, key=lambda line: line.cells[time])


def _seed_column(path: Path, columns: Sequence[str], asked: str | None) -> str:
    if asked is not None:
        return _known(path, columns, asked, "--seed")
    seed_columns = [name for name in columns if re.split(r"[./]", name.lower())[-1] in _SEEDS]
    exact = [
        name for name in seed_columns if name.lower() in ("seed", "params.seed", "config.seed")
    ]
    choices = exact or seed_columns
    if len(choices) == 1:
        return choices[0]
    if not choices:
        raise ValueError(
            f"{printable(path)} has no column seed. Name the column of the seeds by --seed; there "
            f"are {_listed(columns)}."
        )
    raise ValueError(
        f"{printable(path)} has several columns of seeds: {_listed(choices)}. Give --seed with one "
        "of them."
    )


def _seeded(
    path: Path, lines: Sequence[Line], seed: str, kind: Kind, remarks: list[str]
) -> Sequence[Line]:
    """Leave runs without a seed out of a tracker's export, such as parents of sweeps."""
    if kind.name not in ("W&B", "MLflow"):
        return lines
    seeded = [line for line in lines if line.cells[seed]]
    if len(seeded) < len(lines):
        number = len(lines) - len(seeded)
        remarks.append(f"Runs without a seed are left out: {number}.")
    if not seeded:
        raise ValueError(f"No run in {printable(path)} has a value in the column {seed}.")
    return seeded


def _row_columns(
    path: Path,
    columns: Sequence[str],
    lines: Sequence[Line],
    kind: Kind,
    seed: str,
    asked: Sequence[str],
) -> tuple[str, ...]:
    """Return the columns that name the rows.

    Raises:
        ValueError: None was asked for, and not exactly one varies.
    """
    if asked:
        return tuple(_known(path, columns, name, "--row") for name in asked)
    named = [name for name in columns if name.rpartition(".")[2].lower() == _ROW]
    if len(named) == 1:
        return (named[0],)
    # Columns that divide the trainings in the same way say the same; the first stands for them.
    divisions: dict[tuple[int, ...], str] = {}
    for name in kind.settings:
        if name == seed:
            continue
        values = [line.cells[name] for line in lines]
        numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
        if 1 < len(numbers) < len(values):
            divisions.setdefault(tuple(numbers[value] for value in values), name)
    row_columns = list(divisions.values())
    if kind.name == "run folders" and row_columns:
        # The settings of a run folder are known, so all that vary name its row.
        return tuple(row_columns)
    if len(row_columns) == 1:
        return (row_columns[0],)
    if not row_columns:
        others = [name for name in columns if name != seed]
        raise ValueError(
            f"{printable(path)} has no column row, and no setting that varies. Name the column of "
            f"the rows by --row; there are {_listed(others)}."
        )
    raise ValueError(
        f"Several columns vary in {printable(path)}: {_listed(row_columns)}. "
        "Name the one that makes the rows by --row, or give --row several times."
    )


def _metrics(
    path: Path,
    columns: Sequence[str],
    lines: Sequence[Line],
    kind: Kind,
    rows: Sequence[str],
    seed: str,
    asked: Sequence[str],
) -> dict[str, str]:
    """Return the columns of the metrics by their names."""
    if asked:
        return {
            name.removeprefix(kind.prefix): _known(
                path, columns, name if name in columns else kind.prefix + name, "--metric"
            )
            for name in asked
        }
    used = (*rows, seed)
    metric_columns = [
        name
        for name in kind.metrics
        if name not in used and not (kind.name == "W&B" and _is_setting(lines, name, rows))
    ]
    names = {name.removeprefix(kind.prefix): name for name in metric_columns}
    if not names:
        others = [name for name in columns if name not in used]
        raise ValueError(
            f"{printable(path)} has no column of numbers that could be a metric; beside "
            f"{_listed(used)} there are {_listed(others)}."
        )
    if kind.named and len(names) > 1:
        raise ValueError(
            f"{printable(path)} has {len(names)} metrics: {_listed(tuple(names))}. Name those of "
            "the table by --metric, the one to test first."
        )
    return names


def _is_setting(lines: Sequence[Line], column: str, rows: Sequence[str]) -> bool:
    """Whether a column has one value in each row, whatever the seed."""
    values: dict[tuple[str, ...], set[str]] = {}
    for line in lines:
        values.setdefault(tuple(line.cells[name] for name in rows), set()).add(line.cells[column])
    return all(len(of_row) == 1 for of_row in values.values())


def _known(path: Path, columns: Sequence[str], name: str, option: str) -> str:
    if name not in columns:
        raise ValueError(
            f"{printable(path)} has no column {printable(name)} for {option}; there are "
            f"{_listed(columns)}."
        )
    return name


def _run(line: Line, rows: Sequence[str], seed: str, metrics: Mapping[str, str]) -> ForeignRun:
    levels = {_title(name): line.cells[name] for name in rows}
    for name, value in levels.items():
        if not value:
            raise ValueError(f"{line.place}: {printable(name)}, which names the row, is empty.")
    # The heading of the rows names a single column; several are named in the label.
    label = (
        next(iter(levels.values()))
        if len(levels) == 1
        else ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in levels.items())
    )
    return ForeignRun(
        line.place,
        label,
        levels,
        _seed(line, seed),
        {key: _number(line, column) for key, column in metrics.items()},
        line.diverged,
        line.run_dir,
        line.config,
        line.provenance,
    )


def _seed(line: Line, column: str) -> int:
    text = line.cells[column]
    try:
        number = float(text)
        if number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise ValueError(
        f"{line.place}: the seed in {printable(column)} is {text!r}, expected an integer."
    )


def _number(line: Line, column: str) -> float | None:
    """Read a value as given; an empty cell is a training without this result."""
    text = line.cells[column]
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in text:
        raise ValueError(
            f"{line.place}: {printable(column)} is {text!r}, expected a finite number. Leave the "
            "cell empty if the training has no result, or choose other columns by --metric."
        )
    return value


def _check(path: Path, runs: Sequence[ForeignRun]) -> None:
    """Refuse trainings that occur twice, a single row and a single seed."""
    first: dict[tuple[str, int], ForeignRun] = {}
    for run in runs:
        other = first.setdefault((run.row, run.seed), run)
        if other is not run:
            raise ValueError(
                f"{run.place}: {printable(run.row)} with seed {run.seed} is there already "
                f"({other.place}). A row has one training for each seed: remove one, or name "
                "further columns of the rows by --row."
            )
    labels = list(dict.fromkeys(run.row for run in runs))
    if len(labels) < 2:
        raise ValueError(
            f"{printable(path)} has one row, {printable(labels[0])}: expected a base and at least "
            "one row to compare with it."
        )
    seeds = {run.seed for run in runs}
    if len(seeds) < 2:
        raise ValueError(
            f"{printable(path)} has one seed, {seeds.pop()}: a test needs at least two, paired by "
            "row and base. Three seeds show only large differences."
        )


def _title(column: str) -> str:
    """Return a column's name without the prefix of a tracker."""
    return re.sub(r"^(params|tags|config)\.", "", column)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _COLUMNS_NAMED
    text = ", ".join(map(printable, names[:_COLUMNS_NAMED]))
    return f"{text} and {more} more" if more > 0 else text
