"""What drivers leave behind: one folder each below ``tune/``, where its Ray Tune keeps the newest snapshots."""

from __future__ import annotations

import shutil
from pathlib import Path

from sweeps.core.store.leases import Leases
from sweeps.core.store.runs import SESSIONS, Runs


def session_lease(session: Path) -> str:
    """Name of the lease that a driver holds as long as it uses the folder."""
    return f"{SESSIONS}-{session.name}"


def salvage(runs: Runs, leases: Leases, own: Path) -> None:
    """Publish what drivers that are gone had received, for whatever study, and delete what they kept; ``own`` stays.

    What another driver has the lease of, and what cannot be published now, is left for the next one.
    """
    sessions = [path for path in runs.sessions.glob("*") if path != own]
    dead = leases.acquire([session_lease(path) for path in sessions])
    for session in (path for path in sessions if session_lease(path) in dead):
        for folder in _trials(session):
            was_held = leases.holds(folder.name)
            if leases.acquire([folder.name]):
                if runs.salvage(folder.name, [folder.parent], leases.check):
                    shutil.rmtree(folder, ignore_errors=True)
                if not was_held:
                    leases.release([folder.name])
        _remove_empty(session)
    leases.release(dead)


def leave(runs: Runs, own: Path) -> None:
    """Delete what this driver kept, but for snapshots that could not be published, which :func:`salvage` finds."""
    for folder in _trials(own):
        if all(runs.is_published(folder.name, snapshot) for snapshot in folder.glob("checkpoint_*")):
            shutil.rmtree(folder, ignore_errors=True)
    _remove_empty(own)


def _trials(session: Path) -> list[Path]:
    """Folders of trials that have snapshots."""
    return sorted({snapshot.parent for snapshot in session.glob("*/*/checkpoint_*")})


def _remove_empty(session: Path) -> None:
    if not _trials(session):
        shutil.rmtree(session, ignore_errors=True)
