"""The ledger: the results of trials, by key, and their failed attempts.

A trial that finished or diverged has an entry; one that was stopped at a rung has none. The numbers
of all reports come from the entries; logs, pictures and counts of pixels from the run folders.

::

    ledger/KK/KEY.json                             the result of a trial, final: the first stays
    ledger/KK/KEY.failures/                        the failed attempts, a file each
    ledger/trainings/TT/TRAINING_KEY/KEY           empty file: the entry has this training
    ledger/configs/CC/CONFIG/KEY                   empty file: the entry has this config
    runs/KEY/                                      the run folder of the trial

Every entry and every failure carries the SHA-256 of its own bytes. An entry that a bad disk changed
counts as missing: the next run enters the trial again from its run folder, or trains it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sweeps.core.store.first_writer import is_whole_file, write_first
from sweeps.core.store.ledger_entry import FORMAT_VERSION, FailureRecord, LedgerEntry
from sweeps.core.store.stored import Stored, warn_once
from toco.files import check_version, is_sealed, sync, write_text
from toco.passwords import public_text

LONGEST_TRACEBACK = 20_000
"""Characters that are stored of a traceback, from its end. The cause stands at the end.

A traceback through Ray and torch has some hundred lines, which fit. A recursion's would not.
"""
_WITHOUT_DIGEST = b'{"format_version":1,'
"""The first bytes of the entries of version 0.4."""
_NEXT_RUN = "The next run makes it again."
"""Advice about a damaged entry, which counts as missing."""
_DELETE = "Delete it."
"""Advice about a file that no run replaces.

It is a damaged failure, or an undamaged file that is no record of its kind.
"""

Record = TypeVar("Record", bound=Stored)


@dataclass(frozen=True, slots=True)
class Nearest:
    """A result of the same config.

    Attributes:
        identity: What the result depends on, see ``sweeps.core.store.identity.Identity.parts``.
        without_digest: Whether version 0.4 wrote it, so that it does not count.
    """

    identity: Mapping[str, Any]
    without_digest: bool


class Ledger:
    """Read and write the entries in a storage folder."""

    def __init__(self, storage: Path) -> None:
        """Open the ledger in ``storage``, which need not exist.

        Raises:
            ValueError: ``storage`` is an address and no folder.
        """
        self.storage = refuse_address(storage)
        self._root = self.storage / "ledger"

    def run_dir(self, key: str) -> Path:
        """Return the run folder of a trial, which need not exist."""
        return self.storage / "runs" / key

    def entry(self, key: str) -> LedgerEntry | None:
        """Return the entry of a trial; ``None`` where it is missing or, with a warning, damaged.

        Entries of version 0.4, which carry no digest, count as missing.

        Raises:
            ValueError: A later version of this program wrote the file, or it is no entry at all.
        """
        return _read(LedgerEntry, self._path(key), key, _NEXT_RUN)

    def finished_keys(self, keys: Iterable[str]) -> set[str]:
        """Return those of ``keys`` that have a complete entry, so that nothing has to be computed.

        Raises:
            ValueError: A later version of this program wrote an entry.
        """
        # A complete entry needs no parsing. For any other, ``entry`` warns of the damage, or raises
        # the error about a later version.
        return {
            key
            for key, path in self._present(keys)
            if is_whole_file(path, partial(_is_whole, key=key)) or self.entry(key) is not None
        }

    def damaged_keys(self, keys: Iterable[str]) -> set[str]:
        """Return those of ``keys`` whose entry is damaged, so that they do not count as finished.

        An entry of a later version is among them; :meth:`finished_keys` raises an error about it.
        """
        return {
            key
            for key, path in self._present(keys)
            if not is_whole_file(path, partial(_is_known, key=key))
        }

    def content_digest(self, keys: Iterable[str]) -> str | None:
        """Return the SHA-256 over the bytes of the entries, in the order of ``keys``.

        ``None`` where an entry is missing or damaged. The bytes are hashed without parsing, for
        speed. The order counts: a study always has its keys in the same one.
        """
        sha256 = hashlib.sha256()
        try:
            for key in keys:
                content = self._path(key).read_bytes()
                if not _is_whole(content, key):
                    return None
                sha256.update(content)
        except FileNotFoundError:
            return None
        return sha256.hexdigest()

    def write(self, entry: LedgerEntry) -> bool:
        """Write the result of a trial; return whether this entry is the stored one.

        The first entry of a key stays; only a damaged one is replaced. No entry of version 0.4 has
        the key, because keys have another format since. The entry is durable when this returns.

        Raises:
            ValueError: ``storage`` cannot hold a ledger, or a later version of this program wrote
                an entry of this key.
        """
        key = entry.key
        # Before the entry: a result that cannot be found from its training would be trained again.
        self.mark(key, entry.training_key, entry.identity["config"])
        if self.entry(key) is not None:
            return False
        return write_first(self._path(key), entry.text(indent=None), partial(_is_whole, key=key))

    def mark(self, key: str, training_key: str, config_digest: str) -> None:
        """Write the files by which an entry is found from its training and its config.

        The files and their names in their folders are on disk when this returns.
        """
        for marker in (
            self._marked("trainings", training_key) / key,
            self._marked("configs", config_digest) / key,
        ):
            if not marker.exists():
                marker.parent.mkdir(parents=True, exist_ok=True)
                marker.touch()
                sync(marker.parent)

    def failures(self, key: str) -> list[FailureRecord]:
        """Return the failed attempts of a trial, oldest first."""
        folder = self._failures(key)
        names = [name for name in sorted(_names(folder)) if name.endswith(".json")]
        return [
            failure
            for name in names
            if (failure := _read(FailureRecord, folder / name, key, _DELETE)) is not None
        ]

    def add_failure(self, key: str, reason: str, traceback: str, *, host: str = "") -> None:
        """Add a failed attempt; durable when this returns.

        Other processes may add theirs meanwhile.

        Passwords in addresses are removed.

        Args:
            key: The trial.
            reason: The reason in one line.
            traceback: The traceback, of which the end is stored.
            host: Machine where it failed; empty where unknown.
        """
        moment = datetime.now(UTC)
        failure = FailureRecord(
            key=key,
            time=moment.isoformat(timespec="seconds"),
            host=host,
            reason=public_text(reason),
            traceback=public_text(traceback)[-LONGEST_TRACEBACK:],
        )
        name = f"{moment.isoformat(timespec='microseconds')}-{uuid.uuid4().hex[:8]}.json"
        write_text(self._failures(key) / name.replace(":", ""), failure.text(indent=None))

    def by_training(self, training_key: str) -> list[LedgerEntry]:
        """Return the finished entries with this training, sorted by key."""
        # A crash may have left a marker without an entry.
        entries = [
            self.entry(key) for key in sorted(_names(self._marked("trainings", training_key)))
        ]
        return [entry for entry in entries if entry is not None and entry.status == "finished"]

    def nearest(self, config_digest: str) -> Nearest | None:
        """Return the newest result of this config with any code, data and versions.

        The caller compares it with a new trial to say how they differ. Results of version 0.4 are
        included, although they do not count.
        """
        results = [
            (path.stat().st_mtime_ns, path.name, nearest)
            for key in _names(self._marked("configs", config_digest))
            if (nearest := _nearest(path := self._path(key), key)) is not None
        ]
        return max(results, key=lambda result: result[:2])[2] if results else None

    def history(self, recipe: str, limit: int = 200) -> Iterator[LedgerEntry]:
        """Return up to ``limit`` entries of trials of ``recipe``, newest first."""
        files = [
            (file.stat().st_mtime_ns, file.name.removesuffix(".json")) for file in self._entries()
        ]
        entries = (self.entry(key) for _, key in sorted(files, reverse=True))
        return islice(
            (entry for entry in entries if entry is not None and entry.origin.recipe == recipe),
            limit,
        )

    def describe_old_results(self) -> str | None:
        """Describe the results of version 0.4, which do not count; ``None`` where none exists."""
        number = 0
        for entry in self._entries():
            with Path(entry).open("rb") as file:
                number += file.read(len(_WITHOUT_DIGEST)) == _WITHOUT_DIGEST
        if not number:
            return None
        return (
            f"The ledger has {number} results of version 0.4, which do not count: they carry no "
            "digest that would show damage, and other code made them. Those that are needed run "
            "again under other keys; the old ones stay where they are."
        )

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        """Return the files of all entries."""
        return (
            file
            for folder in _names(self._root)
            if len(folder) == 2
            for file in os.scandir(self._root / folder)
            if re.fullmatch(r"[0-9a-f]+\.json", file.name)
        )

    def _present(self, keys: Iterable[str]) -> Iterator[tuple[str, Path]]:
        """Return those of ``keys`` that have a file."""
        by_folder: dict[Path, set[str]] = {}
        for key in keys:
            by_folder.setdefault(self._path(key).parent, set()).add(key)
        for folder, folder_keys in by_folder.items():
            # One listing instead of one question for every key, which would take long on a network
            # file system.
            names = {name.removesuffix(".json") for name in _names(folder)}
            yield from ((key, self._path(key)) for key in folder_keys & names)

    def _path(self, key: str) -> Path:
        return self._root / key[:2] / f"{key}.json"

    def _failures(self, key: str) -> Path:
        return self._root / key[:2] / f"{key}.failures"

    def _marked(self, kind: str, name: str) -> Path:
        return self._root / kind / name[:2] / name


def refuse_address(storage: Path) -> Path:
    """Return ``storage``, which need not exist, unless it is an address such as a bucket's.

    Raises:
        ValueError: It is an address.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", str(storage))
    if scheme:
        raise ValueError(
            f"--storage is {str(storage)!r}, but a ledger needs a folder, on a local disk or "
            "mounted: hard links keep two drivers from running the same trial, and "
            f"{scheme[1]} has none. Give a folder, and copy it to the bucket for readers."
        )
    return storage


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []


def _head(key: str) -> bytes:
    """Return the first bytes of every file of ``key``: its format and its key."""
    return f'{{"format_version":{FORMAT_VERSION},"key":{json.dumps(key)},'.encode()


def _is_whole(content: bytes, key: str) -> bool:
    """Return whether these are the bytes that were written for ``key``."""
    return content.startswith(_head(key)) and is_sealed(content)


def _is_known(content: bytes, key: str) -> bool:
    """Return whether an entry is complete, or one of version 0.4, which has no digest to check."""
    return _is_whole(content, key) or _is_without_digest(content)


def _read(model: type[Record], path: Path, key: str, advice: str) -> Record | None:
    """Read the record of ``key``; ``None`` where it is missing or, with a warning, damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if _is_whole(content, key):
        return model.of_json(content, path, _DELETE)
    if not _is_without_digest(content):
        warn_once(f"{_fault(path, content)} {advice}")
    return None


def _is_without_digest(content: bytes) -> bool:
    """Return whether an entry is one of version 0.4, which no digest protects."""
    return content.startswith(_WITHOUT_DIGEST) and content.endswith(b"}\n")


def _nearest(path: Path, key: str) -> Nearest | None:
    """Read the identity of a result, also of one of version 0.4.

    ``None`` where the file is missing or cannot be read.
    """
    if (entry := _read(LedgerEntry, path, key, _NEXT_RUN)) is not None:
        return Nearest(entry.identity, without_digest=False)
    try:
        content = path.read_bytes()
        identity = json.loads(content)["identity"] if _is_without_digest(content) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return Nearest(identity, without_digest=True) if isinstance(identity, dict) else None


def _fault(path: Path, content: bytes) -> str:
    """Describe the fault of a file that is not complete.

    Raises:
        ValueError: A later version of this program wrote it.
    """
    if not is_sealed(content):
        return (
            f"{path} is damaged and counts as missing: its bytes are not those that were written."
        )
    record = json.loads(content)
    check_version(path, record.get("format_version"), FORMAT_VERSION, "Give another --storage.")
    return f"{path} counts as missing: it is the record of {record.get('key')}."
