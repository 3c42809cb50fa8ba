"""Read a run folder as plain values, for trackers and reports.

Unlike ``toco.train.run_folder`` this module validates no config and imports no torch. It therefore
also reads runs of older versions and runs that are still being written.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from toco.files import UnreadableError, printable
from toco.train import records

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One line of ``metrics.jsonl``.

    Attributes:
        step: Optimizer updates done.
        kind: ``"train"`` or ``"val"``.
        time_s: Seconds since the run started.
        values: Numbers by metric key; fractions are in [0, 1]. Undefined numbers are left out.
    """

    step: int
    kind: str
    time_s: float
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Content of a run folder, whose training may still be going on.

    Attributes:
        path: The folder.
        digest: Digest of the config fields that affect results.
        recipe: Name of the recipe that the run came from; ``None`` without a recipe.
        config: The resolved config, nested.
        provenance: Commit, versions, device, data manifest, start.
        rows: Every undamaged line of ``metrics.jsonl``, in order.
        pictures: Files of the pictures, by step.
        result: Content of ``result.json``; ``None`` before the end of the run.
        last_evaluation: The evaluation with the highest step; ``None`` where it is damaged or no
            evaluation is stored.
        faults: A sentence for every damaged file, whose content is left out.
    """

    path: Path
    digest: str
    recipe: str | None
    config: dict[str, Any]
    provenance: dict[str, Any]
    rows: tuple[MetricRow, ...]
    pictures: dict[int, tuple[Path, ...]]
    result: dict[str, Any] | None
    last_evaluation: dict[str, Any] | None
    faults: tuple[str, ...]

    @property
    def started_ms(self) -> int:
        """Start in milliseconds since 1970."""
        return round(datetime.fromisoformat(self.provenance["started"]).timestamp() * 1000)


def read_run_record(path: Path) -> RunRecord:
    """Read the run folder ``path``, of which only config and provenance must exist.

    Damaged rows, evaluations and results are left out, with a warning that names the file.

    Raises:
        ValueError: ``path`` is no run folder, or its config or provenance is damaged.
    """
    for name in ("config.json", "provenance.json"):
        if not (path / name).is_file():
            raise ValueError(
                f"{printable(path)} is not a run folder: it has no {name}. Give the --run-dir of a "
                "training."
            )
    head = records.read(path / "config.json")
    if not isinstance(head.get("config"), dict) or not isinstance(head.get("digest"), str):
        raise ValueError(
            f"{printable(path / 'config.json')} does not hold a config and its digest; was it "
            "edited by hand?"
        )
    faults: list[str] = []
    files = sorted((path / "evaluations").glob("step_*.json"))
    evaluations = {
        _step(file): content for file in files if (content := _read(file, faults)) is not None
    }
    rows = records.read_rows(path / records.METRICS)
    if rows.fault is not None:
        faults.append(f"{rows.fault} The damaged rows are left out.")
    result = _read(path / "result.json", faults)
    for fault in faults:
        _warn(fault)
    return RunRecord(
        path=path,
        digest=head["digest"],
        recipe=head.get("recipe"),
        config=head["config"],
        provenance=records.read(path / "provenance.json"),
        rows=tuple(map(_row, rows.readable)),
        pictures={
            _step(folder): tuple(sorted(file for file in folder.glob("*.png") if file.is_file()))
            for folder in sorted((path / "pictures").glob("step_*"))
            if folder.is_dir()
        },
        result=result,
        last_evaluation=evaluations.get(_step(files[-1])) if files else None,
        faults=tuple(faults),
    )


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _row(row: records.Row) -> MetricRow:
    values = {key: float(value) for key, value in row["values"].items() if value is not None}
    return MetricRow(row["step"], row["kind"], float(row["time_s"]), values)


def _read(path: Path, faults: list[str]) -> dict[str, Any] | None:
    """Read a record; ``None`` if it is missing or, with a sentence in ``faults``, damaged."""
    try:
        return records.read(path, advice="It is left out.")
    except FileNotFoundError:
        return None
    except UnreadableError as error:
        faults.append(str(error))
        return None
    except OSError as error:
        faults.append(f"{printable(path)} cannot be read: {error.strerror}. It is left out.")
        return None


# Once for each fault, although a run is read again with every evaluation of its study.
@lru_cache(maxsize=1024)
def _warn(fault: str) -> None:
    logger.warning("%s", fault)
