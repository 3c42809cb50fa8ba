"""The run folders of all studies, ``runs/KEY``.

Only a driver that holds the trial's lease writes one.

::

    runs/KEY/        see toco.train.run_folder
    tune/SESSION/    Ray Tune's files of one driver: the newest snapshots of its trials, a cache
"""

from __future__ import annotations

import filecmp
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sweeps.core.store.identity import Identity
from sweeps.core.store.leases import Leases, LostLeaseError
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.ledger_entry import LedgerEntry, Origin, Resources
from sweeps.core.store.stored import Stored, warn_once
from toco.command_line import sentence_of
from toco.files import (
    UnreadableError,
    printable,
    read_json,
    sha256,
    sync,
    whole_file,
    whole_folder,
    write_text,
)
from toco.passwords import public_text
from toco.train import records
from toco.train.checkpoint import STATE, TENSORS, CheckpointError, all_in, read

logger = logging.getLogger(__name__)

# Folder of the sessions, one for each driver.
SESSIONS = "tune"
CONTENTS = "snapshot.json"
"""File of a snapshot that lists all its other files."""


class RunResult(Stored):
    """``result.json``: how a run ended. The fields mean the same as in ``LedgerEntry``."""

    format_version: int
    status: Literal["finished", "diverged", "stopped"]
    step: int
    message: str | None = None
    metrics: Mapping[str, int | float | None] = {}
    wall_time_s: int | float | None = None
    step_time_s: int | float | None = None
    peak_memory_bytes: int | None = None
    num_parameters: int | None = None


class Runs:
    """Read and write the run folders of a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.sessions = ledger.storage / SESSIONS

    def status(self, key: str) -> str | None:
        """Return how a trial ended according to its run folder.

        ``None`` where it has not ended, and where a damaged file hides it.
        """
        return _status(self.ledger.run_dir(key))

    def publish(
        self, key: str, snapshot: Path, check: Callable[[str], None] = lambda key: None
    ) -> None:
        """Bring a run folder to the state of ``snapshot``; durable when this returns.

        ``check`` is called before every change: a driver that was suspended on the way must not
        write to a folder that another driver has taken over.

        A snapshot that is older than the run folder changes nothing: after the loss of a driver, an
        old one may be handed over again. The folder can be resumed from at any moment: a checkpoint
        never appears before the rows that belong to it.

        Args:
            key: The trial.
            snapshot: Its run folder as it was reported.
            check: Raises where this process does not hold the lease of ``key``, see
                ``sweeps.core.store.leases.Leases.check``. The default is for a process that is
                alone with the folder.

        Raises:
            LostLeaseError: ``check`` raised it.
        """
        target = self.ledger.run_dir(key)
        stored_status, status = self.status(key), _status(snapshot)
        done, stored = _progress(snapshot), _progress(target)
        is_older = done < stored or (
            done == stored and stored_status is not None and status is None
        )
        # The evaluation of a stored training has no checkpoint, but it is final for a training
        # begun here.
        if stored_status == "finished" or (is_older and status != "finished"):
            return
        before = partial(check, key)
        last = Path("result.json")
        files = _files(snapshot)

        # Add new files: rows and evaluations first, then checkpoints.
        for relative in sorted(files - {last}):
            if relative.parts[0] != "checkpoints":
                _copy(snapshot / relative, target / relative, before)
        checkpoints = all_in(snapshot / "checkpoints")
        for checkpoint in checkpoints:
            _link_folder(checkpoint, target / "checkpoints" / checkpoint.name, before)

        # Remove files that the training has dropped, such as the counts of old evaluations.
        for old in {path.name for path in all_in(target / "checkpoints")} - {
            path.name for path in checkpoints
        }:
            before()
            shutil.rmtree(target / "checkpoints" / old)
        for path in [path for path in target.rglob("*") if path.is_file()]:
            if path.relative_to(target) not in files:
                before()
                path.unlink()

        # Add the result last: it makes the folder final.
        if last in files:
            _copy(snapshot / last, target / last, before)

    def is_published(self, key: str, snapshot: Path) -> bool:
        """Return whether a run folder is at least as new as ``snapshot``."""
        stored_status, status = self.status(key), _status(snapshot)
        if stored_status == "finished" or status is not None:
            return stored_status in ("finished", status)
        return _progress(snapshot) <= _progress(self.ledger.run_dir(key))

    def recover(self, folder: Path, check: Callable[[str], None] = lambda key: None) -> bool:
        """Publish the snapshots that a lost driver had received of a trial.

        An incomplete or damaged snapshot is skipped. One that cannot be read or written now, on a
        full disk for example, can be published next time.

        Args:
            folder: The driver's snapshots of the trial; its name is the trial's key.
            check: See :meth:`publish`.

        Returns:
            Whether no snapshot has to be tried again.
        """
        key, complete = folder.name, True
        for snapshot in sorted(
            folder.glob("checkpoint_*"), key=lambda path: (_progress(path), path.name)
        ):
            newest = all_in(snapshot / "checkpoints")[-1:]
            try:
                # The copy may be incomplete, at any file.
                if not _is_sealed(snapshot):
                    continue
                if newest and _progress(snapshot) > _progress(self.ledger.run_dir(key)):
                    read(newest[0])
                self.publish(key, snapshot, check)
            except CheckpointError as error:
                logger.warning("Skipping a snapshot of %s: %s", key, error)
            except (OSError, LostLeaseError) as error:
                complete = False
                logger.warning(
                    "A snapshot of %s could not be published and is left: %s",
                    key,
                    sentence_of(error),
                )
        return complete

    def settle(
        self, key: str, identity: Identity, origin: Origin, resources: Mapping[str, Any]
    ) -> bool:
        """Enter a trial that has ended into the ledger; return whether the ledger has it.

        The trial's run folder says whether it has ended.
        """
        run_dir = self.ledger.run_dir(key)
        result, provenance = _result(run_dir), _read(run_dir / "provenance.json")
        if result is None or self.status(key) != result.status:
            return False
        self.ledger.write(
            LedgerEntry(
                key=key,
                training_key=identity.training_key,
                status=result.status,
                step=result.step,
                attempts=len(self.ledger.failures(key)),
                message=public_text(result.message or "") or None,
                identity=identity.parts,
                config=_read(run_dir / "config.json")["config"],
                metrics=result.metrics,
                wall_time_s=result.wall_time_s,
                step_time_s=result.step_time_s,
                peak_memory_bytes=result.peak_memory_bytes,
                num_parameters=result.num_parameters,
                provenance=provenance,
                resources=Resources(**resources),
                origin=replace(
                    origin,
                    derived_from=provenance.get("reevaluated", {}).get("run"),
                    forked_at=provenance.get("forked_at"),
                ),
                run=str(run_dir.relative_to(self.ledger.storage)),
            )
        )
        return True


def session_lease(session: Path) -> str:
    """Return the name of the lease that a driver holds while it uses the folder ``session``."""
    return f"{SESSIONS}-{session.name}"


def recover(runs: Runs, leases: Leases, own_session: Path) -> None:
    """Publish the snapshots of lost drivers, of all studies, and delete their folders.

    The folder of this driver, ``own_session``, stays. Trials that other drivers lease, and
    snapshots that cannot be published now, are left for the next call.
    """
    sessions = [path for path in runs.sessions.glob("*") if path != own_session]
    dead = leases.acquire([session_lease(path) for path in sessions])
    for session in (path for path in sessions if session_lease(path) in dead):
        for folder in _trials_in(session):
            was_held = leases.holds(folder.name)
            if leases.acquire([folder.name]):
                if runs.recover(folder, leases.check):
                    shutil.rmtree(folder, ignore_errors=True)
                if not was_held:
                    leases.release([folder.name])
        _remove_empty(session)
    leases.release(dead)


def leave(runs: Runs, session: Path) -> None:
    """Delete the folder of this driver, except snapshots that could not be published.

    A later :func:`recover` publishes those.
    """
    for folder in _trials_in(session):
        if all(
            runs.is_published(folder.name, snapshot) for snapshot in folder.glob("checkpoint_*")
        ):
            shutil.rmtree(folder, ignore_errors=True)
    _remove_empty(session)


def _trials_in(session: Path) -> list[Path]:
    """Return the folders of the trials that a session has snapshots of."""
    return sorted({snapshot.parent for snapshot in session.glob("*/*/checkpoint_*")})


def _remove_empty(session: Path) -> None:
    if not _trials_in(session):
        shutil.rmtree(session, ignore_errors=True)


def seal(snapshot: Path) -> None:
    """Write the list of a snapshot's files into it, to check it after a crash."""
    hashes = {str(relative): _hash(snapshot / relative) for relative in sorted(_files(snapshot))}
    path = snapshot / CONTENTS
    # The file may be a link into the run folder.
    path.unlink(missing_ok=True)
    write_text(path, json.dumps(hashes), durable=False)


def repair(run_dir: Path) -> None:
    """Repair a copy of a run folder, so that its training can continue.

    Damaged files are removed; all files are, if the training has to begin again.
    """
    for file in (run_dir / "result.json", *(run_dir / "evaluations").glob("*")):
        _clear_folder(file)
    if _result(run_dir) is None:
        (run_dir / "result.json").unlink(missing_ok=True)
    if _head_version(run_dir) is None:
        logger.warning(
            "The run folder of %s is damaged, so the training begins again.", run_dir.name
        )
        shutil.rmtree(run_dir)


def _clear_folder(file: Path) -> None:
    """Delete a folder in the place of ``file``, which could not be written otherwise."""
    if file.is_dir():
        logger.warning("%s is a folder in the place of a file, and is deleted.", printable(file))
        shutil.rmtree(file)


def _is_sealed(snapshot: Path) -> bool:
    """Return whether a snapshot is complete."""
    try:
        hashes = read_json(snapshot / CONTENTS)
    except (OSError, UnreadableError):
        return False
    return bool(
        hashes == {str(relative): _hash(snapshot / relative) for relative in _files(snapshot)}
    )


def _files(snapshot: Path) -> set[Path]:
    files = (path.relative_to(snapshot) for path in snapshot.rglob("*") if path.is_file())
    return {path for path in files if path != Path(CONTENTS)}


def _hash(path: Path) -> str:
    # The tensors are large, and the checkpoint itself has their hash.
    return str(path.stat().st_size) if path.name == TENSORS else sha256(path)


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest readable checkpoint in a run folder; -1 without one."""
    return max((_step(checkpoint) for checkpoint in all_in(run_dir / "checkpoints")), default=-1)


def _progress(run_dir: Path) -> tuple[int, int]:
    """Return step and number of rows of the newest readable checkpoint in a run folder.

    A training that is stopped before the evaluation of a step writes two checkpoints of that step.
    The one after the evaluation has more rows.
    """
    return max(map(_progress_of, all_in(run_dir / "checkpoints")), default=(-1, 0))


def _progress_of(checkpoint: Path) -> tuple[int, int]:
    rows = _read(checkpoint / STATE).get("rows")
    count = rows.get("count") if isinstance(rows, dict) else None
    return _step(checkpoint), count if isinstance(count, int) else 0


def _status(run_dir: Path) -> str | None:
    result = _result(run_dir)
    # The ledger records all three files. If one is damaged, the trial runs again and writes it
    # again.
    if (
        result is None
        or result.status == "stopped"
        or result.format_version != _head_version(run_dir)
    ):
        return None
    return result.status


def _result(run_dir: Path) -> RunResult | None:
    """Read ``result.json``; ``None`` where it is missing or, with a warning, damaged."""
    path, advice = (
        run_dir / "result.json",
        "It counts as missing: the training goes on from its newest checkpoint.",
    )
    try:
        records.read(path, advice=advice)
        return RunResult.of_json(path.read_bytes(), path, advice)
    except UnreadableError as error:
        warn_once(str(error))
    except OSError:
        pass
    return None


def _head_version(run_dir: Path) -> int | None:
    """Return the format version of the records that a run folder has from its start.

    ``None`` where one of them is missing or damaged.
    """
    heads = [
        _read(run_dir / name).get("format_version") for name in ("config.json", "provenance.json")
    ]
    return heads[0] if heads[0] == heads[1] else None


def _step(checkpoint: Path) -> int:
    """Return the step in the state file of a checkpoint; -1 where it is missing or damaged."""
    step = _read(checkpoint / STATE).get("step")
    return step if isinstance(step, int) else -1


def _read(path: Path) -> dict[str, Any]:
    """Read a record of a run folder; empty where it is missing or damaged."""
    try:
        return records.read(path)
    except (OSError, UnreadableError):
        return {}


def _copy(source: Path, target: Path, before: Callable[[], None]) -> None:
    """Copy ``source`` to ``target``; durable when this returns. ``before`` is called first."""
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    with whole_file(target) as new:
        shutil.copy2(source, new)
        # Sync first, so that hardly any time passes between the question and the change.
        sync(new)
        before()
        _clear_folder(target)


def _link_folder(source: Path, target: Path, before: Callable[[], None]) -> None:
    """Make the checkpoint ``target`` of links to the files of ``source``, unless it is the same."""
    if _step(target) >= 0 and _progress_of(target) == _progress_of(source):
        return
    with whole_folder(target) as new:
        shutil.copytree(source, new, copy_function=link_or_copy, dirs_exist_ok=True)
        # Sync first, so that hardly any time passes between the question and the change.
        for path in new.iterdir():
            sync(path)
        before()


def link_or_copy(source: str, target: str) -> None:
    """Link ``target`` to ``source``, or copy it where no link is possible; a ``copy_function``."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
