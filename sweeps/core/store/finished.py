"""The printed results of finished studies, found again without resolving the study.

A study of thousands of configurations takes seconds to resolve and to report. So its last output is
stored under a digest of what it depends on: study, recipe, code, versions of torch and timm, data
and weights. Each start checks whether the results are still the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from sweeps.core.design.study import Study
from sweeps.core.store.identity import InputDigests, config_inputs
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.stored import Stored
from toco.code_digest import code_digests
from toco.config import digest
from toco.files import UnreadableError, sha256, write_text
from toco.train.run_config import RunConfig

FOLDER = "finished"
"""Name of the folder in the storage."""
_PACKAGES = ("torch", "timm")
"""Packages whose versions count: those on which results depend, see ``identity``."""
_SOURCES = ("toco", "sweeps")
"""Packages whose source counts."""


class FinishedStudy(Stored):
    """The end of a finished study.

    Attributes:
        folder: Name of the study's folder in the storage.
        page: File name of its page.
        files: SHA-256 of the tables and the page of the report, by name.
        keys: Keys of its trials.
        entries: SHA-256 over the entries of its trials in the ledger.
        text_printed: The text that it printed.
        exit_code: Its exit status.
    """

    format_version: Literal[4] = 4
    folder: str
    page: str
    files: Mapping[str, str]
    keys: tuple[str, ...]
    entries: str
    text_printed: str
    exit_code: int


def recall(study: Study, storage: Path) -> FinishedStudy | None:
    """Return the end of ``study`` if it was finished in ``storage`` and nothing has changed since.

    That is the case if everything in the name of its file (see ``_path``), the entries of its
    trials, and the tables and the page of its report are the same.
    """
    try:
        finished = FinishedStudy.read(_path(study, storage), "It counts as missing.")
        has_report = all(
            sha256(storage / finished.folder / name) == stored_sha256
            for name, stored_sha256 in finished.files.items()
        )
    except (OSError, UnreadableError):
        return None
    # The entries are compared byte by byte: a deleted entry may have been computed again for
    # another study.
    if not has_report or Ledger(storage).content_digest(finished.keys) != finished.entries:
        return None
    return finished


def remember(
    study: Study,
    storage: Path,
    keys: Sequence[str],
    inputs: Sequence[InputDigests],
    text: str,
    exit_code: int,
    page: Path,
    files: Sequence[Path],
) -> None:
    """Store the end of ``study``, if the ledger has all of its ``keys``.

    Nothing is stored where its trials read different ``inputs``: ``recall`` compares only those of
    the base config.

    Args:
        study: The study.
        storage: Where its ledger and its folder lie.
        keys: Keys of its trials.
        inputs: Digests of the files that its trials read.
        text: The printed text.
        exit_code: The exit status.
        page: The page of the report, in the study's folder.
        files: Tables and page of the report, in the study's folder. If one of them changes,
            ``recall`` returns ``None``.
    """
    entries = Ledger(storage).content_digest(keys)
    if entries is None or len({json.dumps(read, sort_keys=True) for read in inputs}) != 1:
        return
    finished = FinishedStudy(
        folder=page.parent.name,
        page=page.name,
        files={file.name: sha256(file) for file in files},
        keys=tuple(keys),
        entries=entries,
        text_printed=text,
        exit_code=exit_code,
    )
    write_text(_path(study, storage), finished.text(indent=None), durable=False)


def _path(study: Study, storage: Path) -> Path:
    """Return the file of a finished study; its name is a digest of what the end depends on."""
    base = study.base()
    parts = [
        repr(study),
        digest(base),
        config_inputs(base),
        [metadata.version(name) for name in _PACKAGES],
        _sources(study.train.partition(".")[0].partition(":")[0]),
        _own_code(study, base),
    ]
    return storage / FOLDER / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]}.json"


def _own_code(study: Study, base: RunConfig) -> dict[str, str]:
    """Digest the code of the user's own modules that a training of ``study`` may name."""
    varied = (
        item
        for block in study.design.blocks()
        for row in block.rows
        for item in row.changes.items()
    )
    names = {base.backbone.name, base.data.name, base.method.name}
    names |= {str(value) for path, value in varied if path.endswith(".name")}
    return code_digests(sorted(name for name in names if "." in name), without=_SOURCES)


def _sources(trainer: str) -> str:
    """Digest the bytes of all code that may affect results or report.

    A comment counts, too: a needless miss only costs the time to resolve the study.

    Args:
        trainer: Top-level package or module of the function that trains.
    """
    digest_of_all = hashlib.sha256()
    files = []
    for package in (*_SOURCES, *({trainer} - {*_SOURCES})):
        spec = find_spec(package)
        if spec and spec.submodule_search_locations is None and spec.origin:
            files.append(Path(spec.origin))
        for root in (spec.submodule_search_locations or ()) if spec else ():
            files += sorted(path for path in Path(root).rglob("*") if path.suffix in (".py", ".j2"))
    for path in files:
        digest_of_all.update(path.read_bytes())
    return digest_of_all.hexdigest()
