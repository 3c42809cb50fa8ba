"""The record that makes a folder a study's or a search's, and the small files next to it.

A record carries its own digest. A damaged record is moved to ``history/`` and written again from
the command and the ledger.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sweeps.core.store.first_writer import keep_aside, write_first
from sweeps.core.store.stored import Stored, warn_once
from toco.files import (
    SEAL,
    UnreadableError,
    check_seal,
    check_version,
    is_sealed,
    printable,
    write_text,
)

# Finds the ``start_id`` in a file that cannot be parsed any more.
_START = re.compile(rb'"start_id": ?"([0-9a-f]{32})"')
HISTORY = "history"
"""Folder of the records that were replaced."""

logger = logging.getLogger(__name__)


class FolderFile(Stored):
    """The first fields of ``study.json`` and ``search.json``.

    Attributes:
        start_id: Identifies the start of the study or search. It stands at the beginning: that part
            is most likely to survive in a truncated file.
        digest: Digest of the plan.
        changes: Fields of the recipe that are set for all trainings, by dotted path.
        data: Entry of ``toco.data``.
    """

    format_version: int
    start_id: str
    name: str
    title: str
    digest: str
    recipe: str
    changes: Mapping[str, Any]
    data: str


File = TypeVar("File", bound=FolderFile)
OptionalFile = TypeVar("OptionalFile", bound=Stored)


@dataclass(frozen=True, slots=True)
class FolderRecord(Generic[File]):
    """A kind of record, its file and its format.

    Attributes:
        file: Name of the file, such as ``study.json``.
        kind: The owner of the folder, such as ``study``.
        version: Version of the format. Earlier versions had no digest.
        model: Writes and reads the record.
    """

    file: str
    kind: str
    version: int
    model: type[File]

    def read(self, path: Path, advice: str | None = None) -> File:
        """Read the record in the file ``path``.

        Args:
            path: The file, which may have another name than ``file``.
            advice: Last sentence of the error message. By default it says to run the command again.

        Raises:
            ValueError: The file does not exist, is damaged, or has another version.
        """
        if not path.is_file():
            raise ValueError(
                f"{printable(path.parent)} is not a {self.kind}'s folder: it has no {path.name}."
            )
        return self._parse(path, path.read_bytes(), advice)

    def write(self, folder: Path, make: Callable[[File | None, str], File]) -> None:
        """Write the record of ``folder`` unless the stored one is equal. Durable when this returns.

        A record that cannot be read is moved to ``folder/history``. The ``start_id`` stays the same
        in all starts.

        Args:
            folder: The folder of the study or search. It is created.
            make: Makes the record from the stored one, or from ``None``, and from its ``start_id``.
                It is called again where another driver wrote a record meanwhile.

        Raises:
            ValueError: The stored record has a later version, or the file system has no hard links.
        """
        path = folder / self.file
        while True:
            stored, start_id = self._kept(path)
            text = make(stored, start_id or uuid.uuid4().hex).text()
            if stored is not None:
                if text != stored.text():
                    write_text(path, text)
                return
            # If two drivers begin at once, both use the ``start_id`` of the first.
            if write_first(path, text, is_sealed):
                return

    def _parse(self, path: Path, content: bytes, advice: str | None) -> File:
        advice = (
            advice
            or f"Run the {self.kind}'s command again: it writes the file anew from its options."
        )
        version = self._older(content)
        if version is None:
            check_seal(path, content, advice)
            version = json.loads(content).get("format_version")
        check_version(
            path, version, self.version, "Give another --storage." if is_sealed(content) else advice
        )
        return self.model.of_json(content, path, advice)

    def _kept(self, path: Path) -> tuple[File | None, str | None]:
        """Read the stored record and its ``start_id``.

        The record is ``None`` where none is stored, and where it cannot be read and was moved.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None, None
        if is_sealed(content):
            record = self._parse(path, content, None)
            return record, record.start_id
        older = self._older(content)
        suffix = "damaged" if older is None else f"format-{older}"
        try:
            kept_path = keep_aside(path, path.parent / HISTORY, suffix)
        except FileNotFoundError:  # by another driver
            return None, None
        fault = (
            "is damaged"
            if older is None
            else "was written by an earlier version, without a digest of its own"
        )
        logger.warning(
            "%s %s. It is kept as %s and written again.",
            printable(path),
            fault,
            printable(kept_path),
        )
        # Runs in MLflow are found by the ``start_id``. If it is damaged, too, the study gets a new
        # one, like a new start.
        start = _START.search(content)
        return None, start[1].decode() if start else None

    def _older(self, content: bytes) -> int | None:
        """Return the format version of a record without a digest.

        ``None`` where the record has a digest or cannot be read.
        """
        if is_sealed(content):
            return None
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict) or SEAL in record:
            return None
        version = record.get("format_version")
        return version if isinstance(version, int) and 0 < version < self.version else None


def read_optional(path: Path, model: type[OptionalFile]) -> OptionalFile | None:
    """Read a file that only affects how results are shown.

    ``None`` where it is missing or, with a warning, damaged.
    """
    try:
        return model.read(path, "It counts as missing.")
    except FileNotFoundError:
        return None
    except UnreadableError as error:
        warn_once(str(error))
        return None
