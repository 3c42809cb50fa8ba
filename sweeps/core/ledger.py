"""The ledger: what every trial that ever ended came to, by its key; the record that everything else is made from.

::

    ledger/KK/KEY.json            how a trial ended, final: the first to write it stays
    ledger/KK/KEY.failures.json   the attempts that failed
    ledger/trainings/TT/TRAINING_KEY/KEY, ledger/configs/CC/CONFIG/KEY   empty files, by which entries are found
    runs/KEY/                     its run folder
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from toco.files import sync

FORMAT_VERSION = 1
LONGEST_TRACEBACK = 20_000
"""Characters that are kept of a traceback, from its end."""
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})

logger = logging.getLogger(__name__)


class Ledger:
    """Reads and writes the entries below a storage folder."""

    def __init__(self, storage: Path) -> None:
        """Open the ledger in ``storage``, which need not exist.

        Raises:
            ValueError: ``storage`` is an address and no folder.
        """
        self.storage = mounted(storage)
        self._root = self.storage / "ledger"

    def run_dir(self, key: str) -> Path:
        """The run folder of a trial, which need not exist."""
        return self.storage / "runs" / key

    def entry(self, key: str) -> dict[str, Any] | None:
        """How a trial ended; ``None`` where it has not, or, with a warning, where the file is damaged.

        Raises:
            ValueError: It was written by a version of this program with another format.
        """
        return _read(self._path(key), key)

    def finished_keys(self, keys: Iterable[str]) -> set[str]:
        """Those of ``keys`` that have an entry, so that there is nothing left to compute."""
        by_folder: dict[Path, set[str]] = {}
        for key in keys:
            by_folder.setdefault(self._path(key).parent, set()).add(key)
        finished = set()
        for folder, wanted in by_folder.items():
            # One listing instead of a question for every key, which a network file system would take long to answer.
            there = wanted & {name.removesuffix(".json") for name in _names(folder)}
            finished |= {key for key in there if _is_whole(self._path(key)) or self.entry(key) is not None}
        return finished

    def content_digest(self, keys: Iterable[str]) -> str | None:
        """SHA-256 over the entries of ``keys``, byte by byte; ``None`` where one is not there."""
        sha256 = hashlib.sha256()
        try:
            for key in keys:
                sha256.update(self._path(key).read_bytes())
        except FileNotFoundError:
            return None
        return sha256.hexdigest()

    def write(self, entry: Mapping[str, Any]) -> bool:
        """Enter how a trial ended; durable when this returns. Says whether it is this entry that stands there now.

        The first entry of a key stays; only a damaged one is replaced.

        Raises:
            ValueError: ``storage`` cannot hold a ledger.
        """
        key, identity = entry["key"], entry["identity"]
        # Before the entry: one that cannot be found from its training would be trained again.
        for marker in (self._training(entry["training_key"]) / key, self._config(identity["config"]) / key):
            _touch(marker)
        path = self._path(key)
        with partial_file(path, _text(entry)) as partial:
            if link_first(partial, path):
                sync(path.parent)
                return True
            if self.entry(key) is not None:
                return False
            partial.replace(path)
            sync(path.parent)
            return True

    def failures(self, key: str) -> list[dict[str, Any]]:
        """The attempts that failed, oldest first, with ``time``, ``host``, ``reason`` and ``traceback``."""
        content = _read(self._failures_path(key), key)
        return [] if content is None else list(content["failures"])

    def add_failure(self, key: str, reason: str, traceback: str) -> None:
        """Add an attempt that failed. For the holder of the trial's lease alone, as two at once could lose one."""
        failure = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "reason": reason,
            "traceback": traceback[-LONGEST_TRACEBACK:],
        }
        path = self._failures_path(key)
        with partial_file(path, _text({"failures": [*self.failures(key), failure]})) as partial:
            partial.replace(path)
            sync(path.parent)

    def by_training(self, training_key: str) -> list[dict[str, Any]]:
        """The finished entries with this training, sorted by key."""
        return [entry for entry in self._found(self._training(training_key)) if entry["status"] == "finished"]

    def nearest(self, config_digest: str) -> list[dict[str, Any]]:
        """Entries with this config, whatever their code, data and versions; the newest is the last."""
        found = self._found(self._config(config_digest))
        return sorted(found, key=lambda entry: self._path(entry["key"]).stat().st_mtime_ns)

    def history(self, recipe: str, limit: int = 200) -> Iterator[dict[str, Any]]:
        """The newest entries of trials that began from ``recipe``, newest first, ``limit`` at most."""
        files = [
            (file.stat().st_mtime_ns, file.name.removesuffix(".json"))
            for folder in _names(self._root)
            if len(folder) == 2
            for file in os.scandir(self._root / folder)
            if re.fullmatch(r"[0-9a-f]+\.json", file.name)
        ]
        for _, key in sorted(files, reverse=True):
            if limit <= 0:
                return
            entry = self.entry(key)
            if entry is not None and entry["origin"]["recipe"] == recipe:
                limit -= 1
                yield entry

    def _path(self, key: str) -> Path:
        return self._root / key[:2] / f"{key}.json"

    def _failures_path(self, key: str) -> Path:
        return self._root / key[:2] / f"{key}.failures.json"

    def _training(self, training_key: str) -> Path:
        return self._root / "trainings" / training_key[:2] / training_key

    def _config(self, config_digest: str) -> Path:
        return self._root / "configs" / config_digest[:2] / config_digest

    def _found(self, markers: Path) -> list[dict[str, Any]]:
        """The entries that a folder of markers points to; a crash may have left a marker without an entry."""
        return [entry for key in sorted(_names(markers)) if (entry := self.entry(key)) is not None]


def mounted(storage: Path) -> Path:
    """``storage``, if it is a folder's path.

    Raises:
        ValueError: It is an address, such as that of a bucket.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", str(storage))
    if scheme:
        raise ValueError(
            f"--storage is {str(storage)!r}, but a ledger needs a folder, on a local disk or mounted: two drivers keep "
            f"out of each other's way by hard links, which {scheme[1]} does not have. Give a folder, and copy it to "
            "the bucket for readers."
        )
    return storage


@contextmanager
def partial_file(path: Path, text: str) -> Iterator[Path]:
    """``text`` in a file of this writer alone beside ``path``, on disk; gone afterwards unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        sync(partial)
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def link_first(source: Path, target: Path) -> bool:
    """Give ``source`` the name ``target`` too, unless something has that name; says whether ``target`` is ``source``.

    Of all who try at once, on whichever machine, one succeeds.

    Raises:
        ValueError: The file system has no hard links.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        # On NFS the answer to a link that was made may be lost, and the request is then sent again.
        return _same_file(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise ValueError(
            f"{target.parent} is on a file system without hard links ({error.strerror}), by which two drivers keep out "
            "of each other's way. Give a --storage on a local disk or on NFS."
        ) from error
    return True


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False


def _touch(path: Path) -> None:
    """Make an empty file, durable when this returns."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        sync(path.parent)


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []


def _text(content: Mapping[str, Any]) -> str:
    """One line, so that its end says that nothing is missing."""
    return json.dumps({"format_version": FORMAT_VERSION, **content}, separators=(",", ":")) + "\n"


def _is_whole(path: Path) -> bool:
    """Whether a file has no holes and no missing end; takes a fraction of the time that parsing does."""
    content = path.read_bytes()
    return content.endswith(b"}\n") and b"\0" not in content


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """The content of a file of ``key``; ``None`` where there is none, or, with a warning, where it is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("Passing over %s, which is damaged: %s", path, error)
        return None
    if not isinstance(content, dict) or not content:
        logger.warning("Passing over %s, which is damaged: it holds no JSON object.", path)
        return None
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {content.get('format_version')}; this program reads {FORMAT_VERSION}. "
            "Give another --storage."
        )
    if content.get("key", key) != key:
        logger.warning("Passing over %s, which is the entry of %s.", path, content["key"])
        return None
    return content
