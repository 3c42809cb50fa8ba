"""What drivers leave behind: one folder each below ``tune/``, where its Ray Tune keeps the newest snapshots."""

from __future__ import annotations

import shutil
from pathlib import Path

from sweeps.core.lease import Leases
from sweeps.core.runs import SESSIONS, Runs


def session_lease(session: Path) -> str:
    """Name of the lease that a driver holds as long as it uses the folder."""
    return f"{SESSIONS}-{session.name}"


def salvage(runs: Runs, leases: Leases, own: Path) -> None:
    """Publish what drivers that are gone had received, for whatever study, and delete what they kept; ``own`` stays."""
    sessions = [path for path in runs.sessions.glob("*") if path != own]
    dead = leases.acquire([session_lease(path) for path in sessions])
    for session in (path for path in sessions if session_lease(path) in dead):
        for experiment in session.glob("*"):
            for key in {path.parent.name for path in experiment.glob("*/checkpoint_*")}:
                was_held = leases.holds(key)
                if leases.acquire([key]):
                    runs.salvage(key, [experiment])
                    if not was_held:
                        leases.release([key])
        shutil.rmtree(session, ignore_errors=True)
    leases.release(dead)
