"""Read results of trainings that no study ran: tables, exports of trackers, run folders.

A CSV file is a table of its user, the run table of W&B, or what MLflow's ``search_runs`` returns.
Its header says which. A folder holds run folders of toco. Every kind becomes one list of runs with
row, seed and metrics.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sweeps.core.store.runs import RunResult
from toco.config import flatten
from toco.files import files_below, printable, read_text
from toco.train import records
from toco.train.run_config import RunConfig

KindName = Literal["table", "W&B", "MLflow", "run folders"]

_CORRECT = "Correct it, or write it again."
_DELIMITERS = ",;\t"
_SEEDS = ("seed", "random_seed")
"""Last parts of the names of columns that hold seeds."""
_ROW = "row"
_WANDB_COLUMNS = frozenset(
    {
        *("Name", "Agent", "State", "Notes", "User", "Tags", "Created", "Runtime", "Sweep", "ID"),
        *("Updated", "End Time", "Start Time", "Hostname", "Description", "GPU Type", "GPU Count"),
        *("Commit", "GitHub", "Host", "Command", "OS", "Python version", "Project", "Entity"),
    }
)
"""Columns of W&B's run table that are neither settings nor metrics."""
_SCORES = ("val/cam_miou", "val/aux_cam_miou", "val/seg_miou")
"""Metrics of a run folder that a table has unless others are asked for."""
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


@dataclass(frozen=True, slots=True)
class _Line:
    """Cells of a run by column, before the columns have a meaning."""

    place: str
    cells: Mapping[str, str]
    diverged: str | None = None
    run_dir: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Kind:
    """Columns of a kind of file.

    Attributes:
        name: The kind.
        text: Its name in a sentence.
        settings: Columns that can name rows.
        metrics: Columns that can be metrics.
        named: Whether the order of the columns means nothing, so that several metrics must be
            named.
        prefix: Prefix of metric columns, which is not part of a metric's name.
        state: Column and value of a run that has finished; ``None`` if every run has.
        time: Column with the time at which a run began; ``None`` if lines are in order.
    """

    name: KindName
    text: str
    settings: tuple[str, ...]
    metrics: tuple[str, ...]
    named: bool
    prefix: str = ""
    state: tuple[str, str] | None = None
    time: str | None = None


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
    table_lines, columns, kind = _folder(path) if path.is_dir() else _file(path)
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
        f"{printable(path)} is {kind.text}: {_count(len(runs), 'training')} in "
        f"{_count(len({run.row for run in runs}), 'row')} by {', '.join(titles)}, "
        f"seeds from {seed}.",
        tuple(remarks),
        **_setting(lines),
    )


def _file(path: Path) -> tuple[list[_Line], list[str], _Kind]:
    """Read a CSV file, and tell its kind by its header."""
    text = read_text(path)
    if not text.strip():
        raise ValueError(
            f"{printable(path)} is empty: expected a header such as row,seed,miou and a line for "
            "each training."
        )
    head = text.lstrip().partition("\n")[0]
    delimiter = max(_DELIMITERS, key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        table = [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise ValueError(
            f"{printable(path)} is no CSV file: {error} in line {reader.line_num}. {_CORRECT}"
        ) from error
    columns = [column.strip() for column in table[0][1]]
    repeated = [name for name, count in Counter(filter(None, columns)).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{printable(path)} has the column {printable(repeated[0])} more than once. {_CORRECT}"
        )
    lines = []
    for number, cells in table[1:]:
        if len(cells) != len(columns):
            raise ValueError(
                f"{printable(path)}, line {number}, has {_count(len(cells), 'cell')}; the header "
                f"has {_count(len(columns), 'column')}. {_CORRECT}"
            )
        stripped = (cell.strip() for cell in cells)
        # A column without a name is the index of a data frame.
        named = {name: cell for name, cell in zip(columns, stripped, strict=True) if name}
        lines.append(_Line(f"{printable(path)}, line {number}", named))
    if not lines:
        raise ValueError(
            f"{printable(path)} has a header and no training: expected a line for each training."
        )
    named_columns = list(filter(None, columns))
    return lines, named_columns, _kind_of(named_columns, lines)


def _kind_of(columns: Sequence[str], lines: Sequence[_Line]) -> _Kind:
    if "run_id" in columns and any(name.startswith(("metrics.", "params.")) for name in columns):
        return _Kind(
            "MLflow",
            "an export of MLflow's search_runs",
            tuple(name for name in columns if name.startswith("params.")),
            tuple(name for name in columns if name.startswith("metrics.")),
            named=True,
            prefix="metrics.",
            state=("status", "FINISHED") if "status" in columns else None,
            time="start_time" if "start_time" in columns else None,
        )
    if {"Name", "State"} <= set(columns):
        others = tuple(name for name in columns if name not in _WANDB_COLUMNS)
        return _Kind(
            "W&B",
            "an export of W&B's run table",
            others,
            tuple(name for name in others if not name.startswith("_") and _is_number(lines, name)),
            named=True,
            state=("State", "finished"),
            time="Created" if "Created" in columns else None,
        )
    numeric = tuple(name for name in columns if _is_number(lines, name))
    text = tuple(name for name in columns if name not in numeric)
    return _Kind("table", "a table", text, numeric, named=False)


def _folder(path: Path) -> tuple[list[_Line], list[str], _Kind]:
    """Read the run folders in a folder and in its subfolders."""
    results = [file for file in files_below(path).files if file.name == "result.json"]
    if not results:
        raise ValueError(
            f"{printable(path)} holds no run that has ended: expected folders with a result.json, "
            "or give a CSV file."
        )
    lines: list[_Line] = []
    settings: dict[str, None] = {}
    metrics: dict[str, None] = {}
    for file in results:
        records.read(file)
        result = RunResult.of_json(file.read_bytes(), file, "Restore it, or leave the folder out.")
        head, provenance = (
            records.read(file.with_name(name)) for name in ("config.json", "provenance.json")
        )
        config = head.get("config")
        if not isinstance(config, Mapping):
            raise ValueError(
                f"{printable(file.with_name('config.json'))} has no config. Restore it, or leave "
                "the folder out."
            )
        texts = {name: _text(value) for name, value in _settings(config).items()}
        values = {
            name: "" if value is None or not math.isfinite(value) else repr(value)
            for name, value in result.metrics.items()
        }
        settings |= dict.fromkeys(texts)
        metrics |= dict.fromkeys(values)
        message = (result.message or "") if result.status == "diverged" else None
        cells = {**texts, **values, _STATUS: "stopped" if result.status == "stopped" else "ended"}
        lines.append(
            _Line(
                printable(file.parent),
                {**cells, _RECIPE: head.get("recipe") or ""},
                message,
                file.parent,
                config,
                provenance,
            )
        )
    columns = [*settings, *metrics]
    # A run of a method without a decoder lacks some metrics, and one that diverged has none.
    full = [
        _Line(
            line.place,
            {**dict.fromkeys(columns, ""), **line.cells},
            line.diverged,
            line.run_dir,
            line.config,
            line.provenance,
        )
        for line in lines
    ]
    scores = tuple(name for name in _SCORES if name in metrics) or tuple(metrics)
    kind = _Kind(
        "run folders",
        "a folder of run folders of toco",
        tuple(settings),
        scores,
        named=False,
        state=(_STATUS, "ended"),
    )
    return full, columns, kind


_STATUS, _RECIPE = " status", " recipe"
"""Names of cells that no setting and no metric has."""


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten the fields of a config that affect results."""
    try:
        return flatten(RunConfig.model_validate(config), run_only=False)
    except ValueError:
        # Another version of the program wrote it.
        return flatten(config)


def _text(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return value if isinstance(value, str) else json.dumps(value)


def _setting(lines: Sequence[_Line]) -> dict[str, str]:
    """Return recipe and data set of run folders that have the same; else empty texts."""
    recipes = {line.cells.get(_RECIPE, "") for line in lines}
    data = {line.config.get("data", {}).get("name", "") for line in lines}
    return {
        "recipe": recipes.pop() if len(recipes) == 1 else "",
        "data": data.pop() if len(data) == 1 else "",
    }


def _finished(
    path: Path, lines: Sequence[_Line], kind: _Kind, remarks: list[str]
) -> Sequence[_Line]:
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
    path: Path, lines: Sequence[_Line], seed: str, kind: _Kind, remarks: list[str]
) -> Sequence[_Line]:
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
    lines: Sequence[_Line],
    kind: _Kind,
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
    lines: Sequence[_Line],
    kind: _Kind,
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


def _is_setting(lines: Sequence[_Line], column: str, rows: Sequence[str]) -> bool:
    """Whether a column has one value in each row, whatever the seed."""
    values: dict[tuple[str, ...], set[str]] = {}
    for line in lines:
        values.setdefault(tuple(line.cells[name] for name in rows), set()).add(line.cells[column])
    return all(len(of_row) == 1 for of_row in values.values())


def _is_number(lines: Iterable[_Line], column: str) -> bool:
    """Whether a column has a number in at least one cell."""
    for line in lines:
        try:
            float(line.cells[column])
        except ValueError:
            continue
        return True
    return False


def _known(path: Path, columns: Sequence[str], name: str, option: str) -> str:
    if name not in columns:
        raise ValueError(
            f"{printable(path)} has no column {printable(name)} for {option}; there are "
            f"{_listed(columns)}."
        )
    return name


def _run(line: _Line, rows: Sequence[str], seed: str, metrics: Mapping[str, str]) -> ForeignRun:
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


def _seed(line: _Line, column: str) -> int:
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


def _number(line: _Line, column: str) -> float | None:
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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
