"""Records of a run folder: JSON objects and rows of metrics, each with its own SHA-256.

Every reader of run folders uses this module, also those that load neither torch nor a config.

In version 2 of the format every record carries the SHA-256 of its own bytes. Folders of version 1
(toco 0.4 and before) have no digests. Their records are read without the check, with one warning
for each folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from toco.files import (
    SEAL,
    UnreadableError,
    check_seal,
    check_version,
    is_sealed,
    printable,
    read_json,
    read_record,
    record_text,
    write_record,
)

FORMAT_VERSION = 2
UNSEALED_VERSION = 1
"""Version of the format whose records carry no digest."""
METRICS = "metrics.jsonl"
_RESTORE = "Restore it from a copy, or train again in another folder."

logger = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RowsMark:
    """Number and digest of the first rows of a file of metrics.

    Attributes:
        count: Number of rows.
        sha256: SHA-256 of their lines, in hex.
    """

    count: int
    sha256: str

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> RowsMark:
        """Compute the mark of ``rows``."""
        return cls(len(rows), hashlib.sha256(rows_text(rows).encode()).hexdigest())

    def to_json(self) -> dict[str, Any]:
        """Return the mark as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a file of metrics.

    Attributes:
        before_fault: Rows before the first fault.
        after_fault: Undamaged rows after the first fault.
        fault: A sentence that names file and line of the first fault; ``None`` without a fault.
    """

    before_fault: tuple[Row, ...]
    after_fault: tuple[Row, ...] = ()
    fault: str | None = None

    @property
    def readable(self) -> tuple[Row, ...]:
        """All undamaged rows, also those after a fault."""
        return (*self.before_fault, *self.after_fault)


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record of the present format, atomically and durably; :func:`read` reads it."""
    # Content that was read from an older run carries the older version.
    write_record(
        path,
        {"format_version": FORMAT_VERSION, **content} | {"format_version": FORMAT_VERSION},
        indent=2,
    )


def read(path: Path, *, advice: str = _RESTORE) -> dict[str, Any]:
    """Read a record of a run folder, in version 1 or 2 of the format.

    Args:
        path: The file.
        advice: Last sentence of the message: what to do about a damaged file.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableError: The file is damaged, is no JSON object, or is of another version.
    """
    content = path.read_bytes()
    if is_sealed(content):
        sealed = read_record(path, advice=advice)
        if (version := sealed.get("format_version")) not in (UNSEALED_VERSION, FORMAT_VERSION):
            check_version(path, version, FORMAT_VERSION, "Use the version of toco that wrote it.")
        return sealed
    if f'"{SEAL}"'.encode() in content:
        check_seal(path, content, advice)
    try:
        record: dict[str, Any] = read_json(path)
    except UnreadableError as error:
        fault = str(error).removesuffix(" Correct it, or write it again.")
        raise UnreadableError(f"{fault} {advice}") from error
    if not isinstance(record, dict):
        raise UnreadableError(
            f"{printable(path)} holds a JSON {type(record).__name__}, expected an object. {advice}"
        )
    if (version := record.get("format_version")) != UNSEALED_VERSION:
        raise UnreadableError(
            f"{printable(path)} has format version {version!r} and no digest; expected a record of "
            f"this program. {advice}"
        )
    _warn_unsealed(path.parent if path.parent.name != "evaluations" else path.parent.parent)
    return record


def make_row(step: int, kind: str, time_s: float, values: Mapping[str, float]) -> Row:
    """Build a row of metrics.

    Args:
        step: Optimizer updates done.
        kind: ``"train"`` or ``"val"``.
        time_s: Seconds since the start of the run.
        values: Numbers by metric key.
    """
    return {
        "format_version": FORMAT_VERSION,
        "step": step,
        "kind": kind,
        "time_s": round(time_s, 3),
        "values": dict(values),
    }


def rows_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the lines of ``rows``, each with its digest."""
    return "".join(record_text({**row, "format_version": FORMAT_VERSION}) for row in rows)


def read_rows(path: Path) -> Rows:
    """Read a file of metrics; a missing file has no rows.

    A last line without a line end was cut off by a crash, or is still being written. Unless its
    digest shows that it is complete, it is ignored and is no fault.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Rows(())
    *lines, cut_off = content.split(b"\n")
    if is_sealed(cut_off):  # the row is complete, and only its line end is missing
        lines.append(cut_off)
    before_fault: list[Row] = []
    after_fault: list[Row] = []
    fault = None
    for number, line in enumerate(lines, start=1):
        row = read_row(line)
        if row is not None:
            (before_fault if fault is None else after_fault).append(row)
        elif fault is None:
            fault = (
                f"{printable(path)} is damaged in line {number}: its bytes are not those that "
                "were written."
            )
    return Rows(tuple(before_fault), tuple(after_fault), fault)


def read_row(line: bytes) -> Row | None:
    """Parse the row in a line; ``None`` where the line is damaged or cut off."""
    sealed = is_sealed(line)
    if not sealed and SEAL.encode() in line:
        return None
    try:
        row: Row = json.loads(line)
        if not sealed and row.get("format_version", UNSEALED_VERSION) != UNSEALED_VERSION:
            return None
        if not (
            isinstance(row["step"], int)
            and isinstance(row["kind"], str)
            and isinstance(row["values"], dict)
        ):
            return None
        if not all(
            isinstance(value, int | float | None)
            for value in (row["time_s"], *row["values"].values())
        ):
            return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    row.pop(SEAL, None)
    return row


def averaged(rows: Sequence[Row], average_last: int) -> dict[str, Any]:
    """Average the last ``average_last`` evaluations among ``rows``, for ``result.json``."""
    evaluations = [row["values"] for row in rows if row["kind"] == "val"]
    last = evaluations[-average_last:]
    return {
        "metrics": {
            name: sum(row[name] for row in last) / len(last) for name in (last[-1] if last else {})
        },
        "last_metrics": evaluations[-1] if evaluations else {},
        "averaged_evaluations": len(last),
    }


@cache
def _warn_unsealed(run_dir: Path) -> None:
    logger.warning(
        "%s was written by toco 0.4 or before, whose files carry no digests: it is read without "
        "that check.",
        printable(run_dir),
    )
