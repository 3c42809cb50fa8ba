"""The environment that Ray starts in: authenticated, on loopback where it can be, and telling nobody.

Ray reads these variables when it is imported, so this runs before; what the user has set stays.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

# Named for the systems where it is off by default: there, Ray uses 127.0.0.1 for everything and
# listens nowhere else.
_LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
_LOCAL_HOSTS = ("127.0.0.1", "localhost")


def resolve_address(given: str | None) -> str:
    """Where the cluster is: ``given``, or ``RAY_ADDRESS``, which a Ray job finds set; else ``local`` starts one.

    Raises:
        ValueError: It is the address of another of Ray's services.
    """
    address = given or os.environ.get("RAY_ADDRESS") or "local"
    if "://" in address:
        raise ValueError(
            f"{address} is not the address of a Ray cluster, which is HOST:PORT, auto or local. "
            "From outside a cluster, submit a job: ray job submit --address http://HOST:8265 --working-dir . -- COMMAND"
        )
    return address


def prepare(address: str) -> None:
    """Set the variables for the cluster at ``address``."""
    quiet = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Run folders are the record; Tune's own CSV, JSON and TensorBoard copies of every row would
        # be a second one.
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        # Failures and progress are printed by sweeps.core, in a line each.
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        # Tune runs every trial in a new thread, and glibc gives each thread a heap of its own and
        # seldom takes it back.
        "MALLOC_ARENA_MAX": "2",
        # Short trials report often; that the state is saved as often is what we want.
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    if address == "local" or address.partition(":")[0] in _LOCAL_HOSTS:
        os.environ.setdefault(*_LOOPBACK)
    if address == "local":
        ensure_token()
    if has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def token_path() -> Path:
    """Where Ray looks for the token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def has_token() -> bool:
    """Whether Ray would find a token."""
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or token_path().is_file()


def ensure_token() -> None:
    """Make a token if there is none, and keep the file to its owner: Ray itself lets everybody read it."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = token_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.stat().st_uid == os.getuid():
            path.chmod(0o600)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
