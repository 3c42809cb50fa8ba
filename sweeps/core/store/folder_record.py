"""The record that makes a folder a study's or a search's, and what is written beside it.

A record carries its own digest. One that is damaged is kept aside and written again from the command and the ledger.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sweeps.core.store.first_writer import keep_aside, write_first
from toco.files import SEAL, UnreadableError, is_sealed, printable, read_record, record_text, write_text

_START = re.compile(rb'"start_id": ?"([0-9a-f]{32})"')
HISTORY = "history"
"""Folder of what was kept aside."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FolderRecord:
    """A kind of record.

    Attributes:
        file: Its name, such as ``study.json``.
        kind: What the folder is then, such as ``study``.
        version: Of its format. Earlier ones had no digest.
    """

    file: str
    kind: str
    version: int

    def read(self, path: Path, advice: str | None = None) -> dict[str, Any]:
        """The record in the file ``path``.

        Args:
            path: The file, which may have another name than ``file``.
            advice: What to do where it cannot be read; unless given, to run the command again.

        Raises:
            ValueError: There is no such file, it is damaged, or of another version.
        """
        if not path.is_file():
            raise ValueError(f"{printable(path.parent)} is not a {self.kind}'s folder: it has no {path.name}.")
        advice = advice or f"Run the {self.kind}'s command again: it writes the file anew from its options."
        if (older := self._older(path.read_bytes())) is not None:
            raise ValueError(
                f"{printable(path)} has format version {older}; this program reads {self.version}. {advice}"
            )
        content = read_record(path, advice=advice)
        if (found := content.get("format_version")) != self.version:
            raise ValueError(
                f"{printable(path)} has format version {found}; this program reads {self.version}. "
                "Give another --storage."
            )
        return content

    def write(self, folder: Path, make: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        """Write the record of ``folder``, unless it says the same; durable when this returns.

        What cannot be read is kept aside in ``folder/history``. ``start_id`` stays from start to start.

        Args:
            folder: The study's or search's folder. It is made.
            make: Makes the record, without its ``start_id``, of the one that is there, which is empty where there is
                none. Called again where another driver wrote one in the meantime.

        Raises:
            ValueError: It is of a later version, or the folder's file system has no hard links.
        """
        path = folder / self.file
        while True:
            was, start_id = self._kept(path)
            # First in the file: where a file is cut off, the start is most likely to be left.
            content = {"format_version": self.version, "start_id": start_id or uuid.uuid4().hex, **make(was)}
            text = record_text(content, indent=1)
            if was:
                if text != record_text(was, indent=1):
                    write_text(path, text)
                return
            # Two drivers that begin at once: both are to have the start_id of the first.
            if write_first(path, text, is_sealed):
                return

    def _kept(self, path: Path) -> tuple[dict[str, Any], str | None]:
        """The record that is there and its ``start_id``.

        The record is empty where there is none or, after it was kept aside, where it cannot be read.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return {}, None
        older = self._older(content)
        if is_sealed(content) and older is None:
            record = self.read(path)
            return record, str(record["start_id"])
        suffix = "damaged" if older is None else f"format-{older}"
        try:
            kept = keep_aside(path, path.parent / HISTORY, suffix)
        except FileNotFoundError:  # by another driver
            return {}, None
        fault = "is damaged" if older is None else "was written by an earlier version, without a digest of its own"
        logger.warning("%s %s. It is kept as %s and written again.", printable(path), fault, printable(kept))
        # Runs in MLflow are found by it. Were it damaged, too, it would be another one, as after a new start.
        start = _START.search(content)
        return {}, start[1].decode() if start else None

    def _older(self, content: bytes) -> int | None:
        """The format version of a record without a digest; ``None`` where it has one or cannot be read."""
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict) or SEAL in record:
            return None
        version = record.get("format_version")
        return version if isinstance(version, int) and 0 < version < self.version else None


def read_beside(path: Path) -> dict[str, Any]:
    """A record that only says how something is shown; empty where there is none or, with a warning, a damaged one."""
    try:
        return read_record(path, advice="It counts as missing.")
    except FileNotFoundError:
        return {}
    except UnreadableError as error:
        _warn(str(error))
        return {}


# Said once: a page that follows a study reads it again and again.
@lru_cache(maxsize=256)
def _warn(text: str) -> None:
    logger.warning(text)
