"""The environment of Ray: authenticated, on loopback where possible, without usage reports.

Ray reads these variables on import, so this module sets them before. Values that the user has set
stay.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

# The variable is named for the systems where it is off by default. There, Ray uses 127.0.0.1 for
# everything and listens on no other address.
_LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
OBJECT_STORE_BYTES = 200 * 1000**2
"""Size of a node's object store.

No large object goes through it. Ray's default of 30 % of the memory would be wasted, and may be
more than /dev/shm holds. Ray refuses fewer than 75 MiB.
"""
_LOCAL_HOSTS = ("127.0.0.1", "localhost")


def resolve_address(option: str | None) -> str:
    """Return the address of the cluster: ``option``, or ``RAY_ADDRESS``, or ``local``.

    A Ray job finds ``RAY_ADDRESS`` set. For ``local`` a new cluster is started.

    Raises:
        ValueError: It is the address of another service of Ray.
    """
    address = option or os.environ.get("RAY_ADDRESS") or "local"
    if "://" in address:
        raise ValueError(
            f"{address} is not the address of a Ray cluster, which is HOST:PORT, auto or local. "
            "From outside a cluster, submit a job: "
            "ray job submit --address http://HOST:8265 --working-dir . -- COMMAND"
        )
    return address


def prepare(address: str) -> None:
    """Set the variables for the cluster at ``address``."""
    quiet = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Run folders are the record. Tune's CSV, JSON and TensorBoard files would be a second copy
        # of every row.
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        # ``sweeps.core`` prints failures and progress, one line each.
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        # Tune runs every trial in a new thread. glibc gives each thread its own heap and seldom
        # frees it.
        "MALLOC_ARENA_MAX": "2",
        # Short trials report often, and Tune warns if its state is saved as often. That is
        # intended.
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
    """Return the path where Ray looks for the token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def has_token() -> bool:
    """Return whether Ray would find a token."""
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or token_path().is_file()


def ensure_token() -> None:
    """Make a token unless one exists, readable by its owner only.

    Ray's own is readable by everybody.
    """
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
