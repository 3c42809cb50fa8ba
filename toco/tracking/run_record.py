"""What a run folder says, as plain values: trackers and reports start here.

Unlike ``toco.train.run_folder`` this validates no config and imports no torch: a run of an older version, or one that
is still being written, can be shown as it stands.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
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
        values: Numbers by metric key; fractions are in [0, 1]. A number that could not be computed is left out.
    """

    step: int
    kind: str
    time_s: float
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run folder as it stands; the training may still be going on.

    Attributes:
        path: The folder.
        digest: Digest of the config fields that affect results.
        recipe: Name of the recipe, if the run came from one.
        config: The resolved config, nested.
        provenance: Commit, versions, device, data manifest, start.
        rows: Every whole line of ``metrics.jsonl``, in order.
        evaluations: The evaluations' files, by step.
        pictures: The pictures' files, by step.
        result: How the run ended, or ``None`` while it has not.
    """

    path: Path
    digest: str
    recipe: str | None
    config: dict[str, Any]
    provenance: dict[str, Any]
    rows: tuple[MetricRow, ...]
    evaluations: dict[int, dict[str, Any]]
    pictures: dict[int, tuple[Path, ...]]
    result: dict[str, Any] | None

    @property
    def parameters(self) -> dict[str, Any]:
        """The config's leaves by dotted path; lists are leaves."""
        return _flatten("", self.config)

    @property
    def started_ms(self) -> int:
        """Start in milliseconds since 1970."""
        return round(datetime.fromisoformat(self.provenance["started"]).timestamp() * 1000)

    @property
    def last_evaluation(self) -> dict[str, Any] | None:
        """The evaluation with the highest step."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else None


def read_run_record(path: Path) -> RunRecord:
    """Read ``path``, which must hold config and provenance; everything else may not be there yet.

    A row, an evaluation or a result that is damaged is left out, with a warning that names its file.

    Raises:
        ValueError: It is no run folder, or its config or provenance is damaged.
    """
    for name in ("config.json", "provenance.json"):
        if not (path / name).is_file():
            raise ValueError(
                f"{printable(path)} is not a run folder: it has no {name}. Give the --run-dir of a training."
            )
    head = records.read(path / "config.json")
    if not isinstance(head.get("config"), dict) or not isinstance(head.get("digest"), str):
        raise ValueError(
            f"{printable(path / 'config.json')} does not hold a config and its digest; was it edited by hand?"
        )
    return RunRecord(
        path=path,
        digest=head["digest"],
        recipe=head.get("recipe"),
        config=head["config"],
        provenance=records.read(path / "provenance.json"),
        rows=_read_rows(path / records.METRICS),
        evaluations=_read_evaluations(path / "evaluations"),
        pictures={
            _step(folder): tuple(sorted(folder.glob("*.png")))
            for folder in sorted((path / "pictures").glob("step_*"))
            if folder.is_dir()
        },
        result=_read_result(path / "result.json"),
    )


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _read_rows(path: Path) -> tuple[MetricRow, ...]:
    found = records.read_rows(path)
    if found.fault is not None:
        logger.warning("%s The damaged rows are left out.", found.fault)
    rows = []
    for row in (*found.whole, *found.later):
        values = {key: float(value) for key, value in row["values"].items() if value is not None}
        rows.append(MetricRow(row["step"], row["kind"], float(row["time_s"]), values))
    return tuple(rows)


def _read_evaluations(folder: Path) -> dict[int, dict[str, Any]]:
    evaluations = {}
    for file in sorted(folder.glob("step_*.json")):
        try:
            evaluations[_step(file)] = records.read(file)
        except UnreadableError as error:
            logger.warning("%s The evaluation is left out.", error)
    return evaluations


def _read_result(path: Path) -> dict[str, Any] | None:
    try:
        return records.read(path)
    except FileNotFoundError:
        return None
    except UnreadableError as error:
        logger.warning("%s The run counts as not ended.", error)
        return None


def _flatten(prefix: str, node: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    if not isinstance(node, dict) or not node:
        return {prefix: node} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flatten(f"{prefix}.{key}" if prefix else key, value)
    return flat
