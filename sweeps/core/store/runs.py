"""The run folders of all studies, ``runs/KEY``: published by drivers that hold the trial's lease, and by nobody else.

::

    runs/KEY/        see toco.train.run_folder tune/SESSION/    what one driver's Ray Tune keeps,
    the newest snapshots of its trials: a cache, gone with it
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

SESSIONS = "tune"
CONTENTS = "snapshot.json"
"""File of a snapshot that says what else belongs to it."""


class RunResult(Stored):
    """``result.json``: how a run ended. The fields mean what those of ``LedgerEntry`` mean."""

    format_version: int
    status: Literal["finished", "diverged", "stopped"]
    step: int
    message: str | None = None
    metrics: Mapping[str, int | float | None] = {}
    wall_time_s: int | float | None = None
    step_time_s: int | float | None = None
    peak_memory_bytes: int | None = None


class Runs:
    """Reads and writes the run folders beside a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.sessions = ledger.storage / SESSIONS

    def status(self, key: str) -> str | None:
        """How a trial ended by its run folder, ``None`` while it has not, or where a damaged file hides it."""
        return _status(self.ledger.run_dir(key))

    def publish(
        self, key: str, snapshot: Path, check: Callable[[str], None] = lambda key: None
    ) -> None:
        """Bring a run folder to the state of ``snapshot``; durable when this returns.

        ``check`` is asked before every change: a driver that is suspended on the way must not go on
        in a folder that another driver has taken over meanwhile.

        A snapshot older than what is there changes nothing: after the loss of a driver, one may be
        handed out again. At every moment of this the folder can be resumed: a checkpoint never
        appears before the rows that belong to it.

        Args:
            key: The trial.
            snapshot: Its run folder as it was reported.
            check: Raises where the lease of ``key`` is not held, see
                ``sweeps.core.store.leases.Leases.check``. Only a process that nobody else can write
                beside needs none.

        Raises:
            LostLeaseError: ``check`` raised it.
        """
        target = self.ledger.run_dir(key)
        ended, status = self.status(key), _status(snapshot)
        step, newest = newest_step(snapshot), newest_step(target)
        is_older = step < newest or (step == newest and ended is not None and status is None)
        # An evaluation of a stored training has no checkpoint, and yet ends what was begun here.
        if ended == "finished" or (is_older and status != "finished"):
            return
        before = partial(check, key)
        last = Path("result.json")
        files = _files(snapshot)

        # What is new: rows and evaluations first, then checkpoints.
        for relative in sorted(files - {last}):
            if relative.parts[0] != "checkpoints":
                _copy(snapshot / relative, target / relative, before)
        checkpoints = all_in(snapshot / "checkpoints")
        for checkpoint in checkpoints:
            _link_folder(checkpoint, target / "checkpoints" / checkpoint.name, before)

        # What the training has dropped, such as counts of evaluations that are not among the last
        # any more.
        for old in {path.name for path in all_in(target / "checkpoints")} - {
            path.name for path in checkpoints
        }:
            before()
            shutil.rmtree(target / "checkpoints" / old)
        for path in [path for path in target.rglob("*") if path.is_file()]:
            if path.relative_to(target) not in files:
                before()
                path.unlink()

        # How it ended, which makes it final.
        if last in files:
            _copy(snapshot / last, target / last, before)

    def is_published(self, key: str, snapshot: Path) -> bool:
        """Whether a run folder has what ``snapshot`` has, or more."""
        ended, status = self.status(key), _status(snapshot)
        if ended == "finished" or status is not None:
            return ended in ("finished", status)
        return newest_step(snapshot) <= newest_step(self.ledger.run_dir(key))

    def salvage(self, folder: Path, check: Callable[[str], None] = lambda key: None) -> bool:
        """Publish what a driver that is gone had received of a trial; says whether everything could be read.

        A snapshot that was cut off or is damaged is passed over. One that cannot be read or
        written, on a full disk for example, may be published the next time.

        Args:
            folder: The driver's snapshots of the trial; its name is the trial's key.
            check: As of :meth:`publish`.
        """
        key, complete = folder.name, True
        for snapshot in sorted(
            folder.glob("checkpoint_*"), key=lambda path: (newest_step(path), path.name)
        ):
            newest = all_in(snapshot / "checkpoints")[-1:]
            try:
                # The copy may have been cut off, at any file.
                if not _is_sealed(snapshot):
                    continue
                if newest and newest_step(snapshot) > newest_step(self.ledger.run_dir(key)):
                    read(newest[0])
                self.publish(key, snapshot, check)
            except CheckpointError as error:
                logger.warning("Passing over a snapshot of %s: %s", key, error)
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
        """Enter a trial whose run folder says how it ended into the ledger; says whether it is there now."""
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
    """Name of the lease that a driver holds as long as it uses the folder."""
    return f"{SESSIONS}-{session.name}"


def salvage(runs: Runs, leases: Leases, own: Path) -> None:
    """Publish what drivers that are gone had received, for whatever study, and delete what they kept; ``own`` stays.

    What another driver has the lease of, and what cannot be published now, is left for the next
    one.
    """
    sessions = [path for path in runs.sessions.glob("*") if path != own]
    dead = leases.acquire([session_lease(path) for path in sessions])
    for session in (path for path in sessions if session_lease(path) in dead):
        for folder in _trials_in(session):
            was_held = leases.holds(folder.name)
            if leases.acquire([folder.name]):
                if runs.salvage(folder, leases.check):
                    shutil.rmtree(folder, ignore_errors=True)
                if not was_held:
                    leases.release([folder.name])
        _remove_empty(session)
    leases.release(dead)


def leave(runs: Runs, own: Path) -> None:
    """Delete what this driver kept, but for snapshots that could not be published, which :func:`salvage` finds."""
    for folder in _trials_in(own):
        if all(
            runs.is_published(folder.name, snapshot) for snapshot in folder.glob("checkpoint_*")
        ):
            shutil.rmtree(folder, ignore_errors=True)
    _remove_empty(own)


def _trials_in(session: Path) -> list[Path]:
    """Folders of the trials that a session has snapshots of."""
    return sorted({snapshot.parent for snapshot in session.glob("*/*/checkpoint_*")})


def _remove_empty(session: Path) -> None:
    if not _trials_in(session):
        shutil.rmtree(session, ignore_errors=True)


def seal(snapshot: Path) -> None:
    """Write into a snapshot what belongs to it, for who finds it after a crash."""
    hashes = {str(relative): _hash(snapshot / relative) for relative in sorted(_files(snapshot))}
    path = snapshot / CONTENTS
    # It may be a link into the run folder.
    path.unlink(missing_ok=True)
    write_text(path, json.dumps(hashes), durable=False)


def mend(run_dir: Path) -> None:
    """Take what is damaged out of a copy of a run folder, so that its training goes on; all of it, if it cannot."""
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
    """Delete a folder that stands in the place of ``file``, which could not be written otherwise."""
    if file.is_dir():
        logger.warning("%s is a folder in the place of a file, and is deleted.", printable(file))
        shutil.rmtree(file)


def _is_sealed(snapshot: Path) -> bool:
    """Whether all of a snapshot is there."""
    try:
        hashes = read_json(snapshot / CONTENTS)
    except (OSError, UnreadableError):
        return False
    return bool(
        hashes == {str(relative): _hash(snapshot / relative) for relative in _files(snapshot)}
    )


def _files(snapshot: Path) -> set[Path]:
    found = (path.relative_to(snapshot) for path in snapshot.rglob("*") if path.is_file())
    return {path for path in found if path != Path(CONTENTS)}


def _hash(path: Path) -> str:
    # Large, and the checkpoint itself says what its hash is.
    return str(path.stat().st_size) if path.name == TENSORS else sha256(path)


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint in a run folder that can be read; -1 before the first."""
    return max((_step(checkpoint) for checkpoint in all_in(run_dir / "checkpoints")), default=-1)


def _status(run_dir: Path) -> str | None:
    result = _result(run_dir)
    # The ledger records all three: where one is damaged, the trial runs again and leaves it whole.
    if (
        result is None
        or result.status == "stopped"
        or result.format_version != _head_version(run_dir)
    ):
        return None
    return result.status


def _result(run_dir: Path) -> RunResult | None:
    """What ``result.json`` says; ``None`` where there is none or, with a warning, where it is damaged."""
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
    """Format version of the records that a run folder has from its start; ``None`` where one is missing or damaged."""
    heads = [
        _read(run_dir / name).get("format_version") for name in ("config.json", "provenance.json")
    ]
    return heads[0] if heads[0] == heads[1] else None


def _step(checkpoint: Path) -> int:
    """What a checkpoint says of itself; -1 for one that is not there or is damaged."""
    step = _read(checkpoint / STATE).get("step")
    return step if isinstance(step, int) else -1


def _read(path: Path) -> dict[str, Any]:
    """A record of a run folder; empty where there is none or it is damaged."""
    try:
        return records.read(path)
    except (OSError, UnreadableError):
        return {}


def _copy(source: Path, target: Path, before: Callable[[], None]) -> None:
    """Bring ``target`` to the content of ``source``; durable when this returns. ``before`` is called first."""
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    with whole_file(target) as new:
        shutil.copy2(source, new)
        # Also now, so that next to no time passes between the question and the change.
        sync(new)
        before()
        _clear_folder(target)


def _link_folder(source: Path, target: Path, before: Callable[[], None]) -> None:
    """Make ``target``, a checkpoint, with links to the files of ``source``; one that is whole stays."""
    if _step(target) >= 0:
        return
    with whole_folder(target) as new:
        shutil.copytree(source, new, copy_function=link_or_copy, dirs_exist_ok=True)
        # Also now, so that next to no time passes between the question and the change.
        for path in new.iterdir():
            sync(path)
        before()


def link_or_copy(source: str, target: str) -> None:
    """Make ``target`` a hard link to ``source``, or a copy where there can be none; a ``copy_function``."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
