"""A description of a process, by which other processes can tell whether it has ended."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil

from sweeps.core.store.stored import Stored


class Process(Stored):
    """A process, distinguished from later processes with the same number.

    Attributes:
        host: Name of its machine, for messages.
        machine: Boot and process-number space. Processes with the same value can see each other.
        pid: Its number.
        started: Time of its start, in the machine's own unit.
    """

    host: str
    machine: str
    pid: int
    started: str

    def is_dead(self) -> bool:
        """Return whether the process is known to have ended.

        Processes of other machines are never known to have ended.
        """
        return self.machine == machine() and started(self.pid) != self.started


def this_process() -> Process:
    """Return the calling process."""
    pid = os.getpid()
    return Process(
        host=socket.gethostname(), machine=machine(), pid=pid, started=started(pid) or ""
    )


def machine() -> str:
    """Return a text that is equal for processes that see each other's numbers.

    That is: one boot of one machine, and one container on it.
    """
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists() and space.is_symlink():
        return f"{boot.read_text().strip()} {space.readlink()}"
    return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def started(pid: int) -> str | None:
    """Return the start of a process as exactly as the machine knows it.

    ``None`` where the process ended or is a zombie.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{pid}/stat")
        # In ticks since the boot. psutil adds the time of the boot, which changes when the clock is
        # set.
        return (
            stat.read_text().rpartition(")")[2].split()[19]
            if stat.exists()
            else str(process.create_time())
        )
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None
