"""The journal of a search: what Optuna logs, one record a line, each with its place and its own digest.

Every trial follows from the lines before it. A journal therefore ends before its first damaged line: what came after is
asked for again, and results that the ledger has are not computed again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from sweeps.core.store.first_writer import keep_aside
from sweeps.core.store.folder_record import HISTORY
from toco.files import append, is_sealed, printable, record_text, write_text

logger = logging.getLogger(__name__)


class Journal(BaseJournalBackend):
    """Reads and appends lines. Only the process that holds the search's lease appends; others may read meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._logs: list[dict[str, Any]] = []
        self._end = 0
        """Bytes of the whole lines."""
        self.fault: str | None = None
        """What is damaged, in a sentence; nothing after it is read."""

    def read_logs(self, log_number_from: int) -> Sequence[dict[str, Any]]:
        """Logs of the whole lines from the given one on.

        A last line without its end was cut off by a crash, or is being written: it is no line and no fault.
        """
        if self.fault is None and self._path.is_file():
            with self._path.open("rb") as file:
                file.seek(self._end)
                *lines, _ = file.read().split(b"\n")
            for line in lines:
                log = _log(line, len(self._logs))
                if log is None:
                    self.fault = (
                        f"{printable(self._path)} is damaged in line {len(self._logs) + 1}: its bytes are not those "
                        "that were written."
                    )
                    break
                self._logs.append(log)
                self._end += len(line) + 1
        return self._logs[log_number_from:]

    def append_logs(self, logs: Sequence[dict[str, Any]]) -> None:
        """Append lines; they are on disk when this returns, or none of them is there."""
        self.read_logs(0)
        append(self._path, "".join(_lines(logs, len(self._logs))).encode())

    def repair(self) -> None:
        """End the file after its last whole line, so that lines can follow; a damaged one is kept in ``history/``."""
        self.read_logs(0)
        if self.fault is not None:
            kept = keep_aside(self._path, self._path.parent / HISTORY, "damaged")
            write_text(self._path, "".join(_lines(self._logs, 0)))
            logger.warning(
                "%s The journal is kept as %s. The search goes on from the line before: later trials are asked for "
                "again, and results that the ledger has are not computed again.",
                self.fault,
                printable(kept),
            )
            self.fault = None
        elif self._path.is_file() and self._path.stat().st_size > self._end:
            logger.warning("The last line of %s is torn, which loses one event of the search.", printable(self._path))
            os.truncate(self._path, self._end)


def _lines(logs: Sequence[dict[str, Any]], start: int) -> Iterator[str]:
    return (record_text({"line": number, "log": log}) for number, log in enumerate(logs, start))


def _log(line: bytes, number: int) -> dict[str, Any] | None:
    """The log in a line; ``None`` where it is damaged or not the line of that number."""
    record = json.loads(line) if is_sealed(line) else {}
    log: dict[str, Any] | None = record.get("log") if record.get("line") == number else None
    return log
