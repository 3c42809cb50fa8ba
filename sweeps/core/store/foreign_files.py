"""Read the files of trainings that no study ran: CSV files, exports of trackers, run folders.

A CSV file is a table of its user, the run table of W&B, or what MLflow's ``search_runs`` returns.
Its header says which. A folder holds run folders of toco.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sweeps.core.store.runs import RunResult
from toco.config import flatten
from toco.files import files_below, printable, read_text
from toco.train import records
from toco.train.run_config import RunConfig

KindName = Literal["table", "W&B", "MLflow", "run folders"]

_STATUS, RECIPE = " status", " recipe"
"""Names of cells that no setting and no metric has."""

_CORRECT = "Correct it, or write it again."
_DELIMITERS = ",;\t"
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


@dataclass(frozen=True, slots=True)
class Line:
    """Cells of a run by column, before the columns have a meaning."""

    place: str
    cells: Mapping[str, str]
    diverged: str | None = None
    run_dir: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kind:
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


def read_file(path: Path) -> tuple[list[Line], list[str], Kind]:
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
                f"{printable(path)}, line {number}, has {count_text(len(cells), 'cell')}; the "
                f"header has {count_text(len(columns), 'column')}. {_CORRECT}"
            )
        stripped = (cell.strip() for cell in cells)
        # A column without a name is the index of a data frame.
        named = {name: cell for name, cell in zip(columns, stripped, strict=True) if name}
        lines.append(Line(f"{printable(path)}, line {number}", named))
    if not lines:
        raise ValueError(
            f"{printable(path)} has a header and no training: expected a line for each training."
        )
    named_columns = list(filter(None, columns))
    return lines, named_columns, _kind_of(named_columns, lines)


def _kind_of(columns: Sequence[str], lines: Sequence[Line]) -> Kind:
    if "run_id" in columns and any(name.startswith(("metrics.", "params.")) for name in columns):
        return Kind(
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
        return Kind(
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
    return Kind("table", "a table", text, numeric, named=False)


def read_folder(path: Path) -> tuple[list[Line], list[str], Kind]:
    """Read the run folders in a folder and in its subfolders."""
    results = [file for file in files_below(path).files if file.name == "result.json"]
    if not results:
        raise ValueError(
            f"{printable(path)} holds no run that has ended: expected folders with a result.json, "
            "or give a CSV file."
        )
    lines: list[Line] = []
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
            Line(
                printable(file.parent),
                {**cells, RECIPE: head.get("recipe") or ""},
                message,
                file.parent,
                config,
                provenance,
            )
        )
    columns = [*settings, *metrics]
    # A run of a method without a decoder lacks some metrics, and one that diverged has none.
    full = [replace(line, cells={**dict.fromkeys(columns, ""), **line.cells}) for line in lines]
    scores = tuple(name for name in _SCORES if name in metrics) or tuple(metrics)
    kind = Kind(
        "run folders",
        "a folder of run folders of toco",
        tuple(settings),
        scores,
        named=False,
        state=(_STATUS, "ended"),
    )
    return full, columns, kind


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten the fields of a config that affect results."""
    try:
        return flatten(RunConfig.model_validate(config), run_only=False)
    except ValueError:
        # Another version of the program wrote it.
        return flatten(config)


def _text(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return value if isinstance(value, str) else json.dumps(value)


def _is_number(lines: Iterable[Line], column: str) -> bool:
    """Whether a column has a number in at least one cell."""
    for line in lines:
        try:
            float(line.cells[column])
        except ValueError:
            continue
        return True
    return False


def count_text(number: int, noun: str) -> str:
    """Format a number with its noun, such as ``1 row`` or ``3 rows``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
