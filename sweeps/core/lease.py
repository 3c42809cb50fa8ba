"""Who works on a trial now: leases on keys, between processes and between machines that mount the same storage.

A lease is a hard link ``leases/KEY.json`` to the holder's own file, so that of all who try one gets it, on NFS too, and
one heart-beat keeps all leases of a holder alive. Where a holder is gone, a successor links its own file to
``leases/KEY.after-HOLDER.json``: the end of that chain holds the lease, and again one of all who try gets it.

Times are those that the storage gives to files, so that the clocks of the machines do not matter.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil

from sweeps.core.ledger import link_first, mounted, partial_file

FORMAT_VERSION = 1
FOLDER = "leases"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Process:
    """A process, told apart from those that get its number after it.

    Attributes:
        machine: Boot and process-number space: processes with the same one can see each other.
    """

    host: str
    machine: str
    pid: int
    started: str

    def is_dead(self) -> bool:
        """Whether it is known to have ended; of another machine's processes nothing is known."""
        return self.machine == _machine() and _started(self.pid) != self.started


@dataclass(frozen=True, slots=True)
class _Link:
    """One link of a chain: the file, who made it, and its last heart-beat by the storage's clock."""

    path: Path
    owner: str
    holder: str
    process: _Process
    beat_s: float


class Leases:
    """Takes leases in a storage folder and keeps them alive; a context, which releases them at its end.

    A process that was suspended for longer than ``expires_s`` may find its leases taken over: :meth:`holds` says so.
    """

    def __init__(self, storage: Path, holder: str, *, beat_every_s: float = 10.0, expires_s: float = 60.0) -> None:
        """Say who takes leases; nothing is written before the first one.

        Args:
            storage: The folder that the ledger is in.
            holder: What others read about it, such as ``the study table5``.
            beat_every_s: Seconds between heart-beats.
            expires_s: Seconds without a heart-beat after which others take its leases over.

        Raises:
            ValueError: ``storage`` is an address and no folder, or the times do not fit.
        """
        if not 0 < beat_every_s < expires_s / 2:
            raise ValueError(
                f"A lease that expires after {expires_s} s needs a heart-beat at least twice in that time, not every "
                f"{beat_every_s} s."
            )
        self._folder = mounted(storage) / FOLDER
        self._holder = holder
        self._beat_every_s = beat_every_s
        self._expires_s = expires_s
        # Names that this holder has had, the one it takes leases with last.
        self._owners: list[str] = []
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> Leases:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def acquire(self, keys: Iterable[str]) -> set[str]:
        """Take what is free of ``keys``, or was left by a holder that is gone; those that are held now.

        Raises:
            ValueError: The storage has no hard links.
        """
        with self._lock:
            self._show_life()
            now_s = self._now_s()
            got = {key for key in keys if self._take(key, now_s)}
            self._held |= got
            return got

    def holds(self, key: str) -> bool:
        """Whether the lease is held, as the storage says; to be asked before writing what only a holder may write."""
        chain = self._chain(key)
        return bool(chain) and chain[-1].owner in self._owners

    def holder(self, key: str) -> str | None:
        """Who holds the lease, in words; ``None`` where nobody does who is still there."""
        chain = self._chain(key)
        if not chain or self._is_gone(last := chain[-1], self._now_s()):
            return None
        return f"{last.holder} on {last.process.host} (process {last.process.pid})"

    def release(self, keys: Iterable[str]) -> None:
        """Let go of ``keys``; those that are not held stay as they are."""
        with self._lock:
            for key in keys:
                chain = self._chain(key)
                if chain and chain[-1].owner in self._owners:
                    # The first link first: what is left of a chain without it means nothing.
                    for link in chain:
                        link.path.unlink(missing_ok=True)
                self._held.discard(key)

    def close(self) -> None:
        """Release everything and stop the heart-beat."""
        self.release(tuple(self._held))
        self._closing.set()
        if self._heart is not None:
            self._heart.join()
        for owner in self._owners:
            self._file(owner).unlink(missing_ok=True)

    def _show_life(self) -> None:
        """Renew all leases; with the first call, begin to do so again and again."""
        if self._heart is not None:
            self._renew()
            return
        for left in self._file("*").parent.glob("*.json"):
            link = _read(left)
            if link is not None and link.process.is_dead():
                left.unlink(missing_ok=True)
        self._new_owner()
        self._heart = threading.Thread(target=self._beat, name="leases", daemon=True)
        self._heart.start()

    def _new_owner(self) -> None:
        """Take a name that is in no chain, with a file to link to."""
        owner = uuid.uuid4().hex
        process = _Process(socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()) or "")
        content = {
            "format_version": FORMAT_VERSION,
            "owner": owner,
            "holder": self._holder,
            "process": asdict(process),
        }
        path = self._file(owner)
        with partial_file(path, json.dumps(content)) as partial:
            partial.replace(path)
        self._owners.append(owner)

    def _file(self, owner: str) -> Path:
        return self._folder / "holders" / f"{owner}.json"

    def _beat(self) -> None:
        while not self._closing.wait(self._beat_every_s):
            self._renew()

    def _renew(self) -> None:
        for owner in tuple(self._owners):
            try:
                os.utime(self._file(owner))
            except OSError as error:
                logger.warning("The leases in %s could not be renewed, and may expire: %s", self._folder, error)

    def _take(self, key: str, now_s: float) -> bool:
        chain = self._chain(key)
        if chain and chain[-1].owner in self._owners:
            return True
        if chain and not self._is_gone(chain[-1], now_s):
            return False
        if self._successor(key, self._owners[-1]).exists():
            # Somebody took over from this holder while it was suspended: the name has its place, and no second one.
            self._new_owner()
        target = self._successor(key, chain[-1].owner) if chain else self._folder / f"{key}.json"
        if not link_first(self._file(self._owners[-1]), target):
            return False
        if self.holds(key):
            return True
        # The chain ended, or began anew, between the look at it and the link, which therefore joined nothing.
        target.unlink(missing_ok=True)
        return False

    def _chain(self, key: str) -> list[_Link]:
        """The first holder of a lease and whoever took over from it, from the one before."""
        chain: list[_Link] = []
        path = self._folder / f"{key}.json"
        while (link := _read(path)) is not None:
            chain.append(link)
            path = self._successor(key, link.owner)
        return chain

    def _successor(self, key: str, owner: str) -> Path:
        return self._folder / f"{key}.after-{owner}.json"

    def _is_gone(self, link: _Link, now_s: float) -> bool:
        return link.process.is_dead() or now_s - link.beat_s > self._expires_s

    def _now_s(self) -> float:
        """The storage's time: what it gives to a file that is made now."""
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".now-") as file:
            return os.fstat(file.fileno()).st_mtime


def _read(path: Path) -> _Link | None:
    try:
        # Opened, not just asked for: only then does NFS look at the server for the newest heart-beat.
        with path.open("rb") as file:
            content = json.loads(file.read())
            beat_s = os.fstat(file.fileno()).st_mtime
        return _Link(path, content["owner"], content["holder"], _Process(**content["process"]), beat_s)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} says in no known way who works on this trial. When no other driver uses this storage, delete it."
        ) from error


def _machine() -> str:
    """Equal for processes that can see each other by their numbers: one boot of one machine, not across containers."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists() and space.is_symlink():
        return f"{boot.read_text().strip()} {space.readlink()}"
    return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _started(pid: int) -> str | None:
    """When a process started, as exactly as the machine knows it; ``None`` where it is gone, or killed and unreaped."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{pid}/stat")
        # In ticks since the boot: psutil adds the time of the boot, which moves when the clock is set.
        return stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else str(process.create_time())
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None
