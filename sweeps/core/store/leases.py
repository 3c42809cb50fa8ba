"""Leases on keys: which driver works on a trial now.

They hold between processes, and between machines that mount the same storage. A lease is a hard
link ``leases/KEY.json`` to the holder's own file. Of all who try at once exactly one gets it, on
NFS too, and one heart-beat renews all leases of a holder. If a holder is gone, a successor links
its own file to ``leases/KEY.after-HOLDER.json``. The last link of that chain is the lease, and
again exactly one successor gets it.

A heart-beat is a new modification time of the holder's file. A waiter compares it with the time
that it read before, and counts the seconds without a change on its own monotonic clock. So neither
the clocks of other machines matter nor a clock that is set. A file that cannot be read is the lease
of an unknown holder. It is valid as long as its heart-beat changes.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from sweeps.core.store.first_writer import link_first
from sweeps.core.store.ledger import refuse_address
from sweeps.core.store.process_identity import Process, this_process
from sweeps.core.store.stored import Stored
from toco.files import UnreadableError, write_text

FORMAT_VERSION = 2
FOLDER = "leases"
SILENT_BEATS = 2
"""Number of missed heart-beats after which a driver is called silent.

One late heart-beat is usual on a network disk; two are not. The lease ends later.
"""

logger = logging.getLogger(__name__)


class LostLeaseError(RuntimeError):
    """Another driver holds the lease now, so that nothing may be written."""


class Holder(Stored):
    """The file of a holder: its unique name, its description as text, and its process."""

    format_version: int = FORMAT_VERSION
    owner: str
    holder: str
    process: Process


@dataclass(frozen=True, slots=True)
class _Link:
    """One link of a chain.

    Attributes:
        path: The file.
        owner: Unique name of the holder that made it.
        holder: The content of the file; ``None`` where it cannot be read.
        beat: A number that changes with every heart-beat.
    """

    path: Path
    owner: str
    holder: Holder | None
    beat: int

    @property
    def text(self) -> str:
        """Description of the holder, for messages."""
        if self.holder is None:
            return f"a driver whose lease {self.path} cannot be read"
        process = self.holder.process
        return f"{self.holder.holder} on {process.host} (process {process.pid})"


class _Silences:
    """Measure the silence of other holders: the seconds since their last heart-beat changed.

    The clock is the monotonic one of this process. Time counts only between two looks, and at most
    ``longest_s`` of it: a process that was suspended itself did not see the heart-beats of that
    time.
    """

    def __init__(self, longest_s: float, clock: Callable[[], float]) -> None:
        self._longest_s = longest_s
        self._clock = clock
        # By owner: the last heart-beat, the time of the last look, and the silence until then.
        self._seen: dict[str, tuple[int, float, float]] = {}
        # Owners whose heart-beat changed between two looks.
        self.alive: set[str] = set()

    def look(self, link: _Link) -> float:
        """Return the seconds without a new heart-beat; 0 at the first look."""
        now_s = self._clock()
        beat, last_s, silent_s = self._seen.get(link.owner, (None, now_s, 0.0))
        if beat not in (None, link.beat):
            self.alive.add(link.owner)
        silent_s = silent_s + min(now_s - last_s, self._longest_s) if beat == link.beat else 0.0
        self._seen[link.owner] = (link.beat, now_s, silent_s)
        return silent_s


class Leases(AbstractContextManager["Leases"]):
    """Take leases in a storage folder and renew them; a context that releases them at its end.

    A process that was suspended for longer than ``expires_s`` may lose its leases to another one.
    :meth:`holds` then returns false.

    Attributes:
        beat_every_s: Seconds between heart-beats.
        expires_s: Seconds without a heart-beat after which other drivers take the leases over.
    """

    def __init__(
        self,
        storage: Path,
        holder: str,
        *,
        beat_every_s: float = 10.0,
        expires_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe the holder. Nothing is written before the first lease is taken.

        Args:
            storage: The folder that the ledger is in.
            holder: Description for other drivers, such as ``the study table5``.
            beat_every_s: See the attributes.
            expires_s: See the attributes.
            clock: Returns monotonic seconds.

        Raises:
            ValueError: ``storage`` is an address and no folder, or the times do not fit.
        """
        if not 0 < beat_every_s < expires_s / 2:
            raise ValueError(
                f"A lease that expires after {expires_s} s needs a heart-beat at least twice in "
                f"that time, not every {beat_every_s} s."
            )
        self._folder = refuse_address(storage) / FOLDER
        self._holder = holder
        self.beat_every_s = beat_every_s
        self.expires_s = expires_s
        self._silences = _Silences(beat_every_s, clock)
        # All names of this holder. The last one takes new leases.
        self._owners: list[str] = []
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._heart: threading.Thread | None = None

    def __exit__(self, *exception: object) -> None:
        self.close()

    def acquire(self, keys: Iterable[str]) -> set[str]:
        """Take those leases of ``keys`` that are free or whose holder is gone.

        Returns:
            Those of ``keys`` whose leases are held now.

        Raises:
            ValueError: The storage has no hard links.
        """
        with self._lock:
            self._show_life()
            got = {key for key in keys if self._take(key)}
            self._held |= got
            return got

    def holds(self, key: str) -> bool:
        """Return whether the storage says that this process holds the lease.

        To be asked before writing anything that only a holder may write.
        """
        chain = self._chain(key)
        return bool(chain) and chain[-1].owner in self._owners

    def check(self, key: str) -> None:
        """Raise unless :meth:`holds`; for writers.

        Raises:
            LostLeaseError: Another driver holds the lease, or no driver does.
        """
        if not self.holds(key):
            raise LostLeaseError(
                "This driver was suspended or cut off, and "
                f"{self.holder(key) or 'another driver'} has taken over. The same command goes on "
                "from here."
            )

    def holder(self, key: str) -> str | None:
        """Describe the holder of a lease, as text; ``None`` where no living driver holds it.

        A process that takes no leases itself asks only once and cannot wait for a heart-beat. For
        such a reader the age of the last heart-beat counts, by the clock of the storage. That
        answer is for messages only: it gives no right to write.
        """
        link = self._last(key)
        if (
            link is None
            or self._is_gone(link)
            or (self._heart is None and self._age_s(link) > self.expires_s)
        ):
            return None
        return link.text

    def silence_s(self, key: str) -> float:
        """Return the seconds without a heart-beat of the holder; 0 where no driver holds it."""
        link = self._last(key)
        return 0.0 if link is None else self._silences.look(link)

    def has_shown_life(self, key: str) -> bool:
        """Return whether this object has seen a heart-beat of the holder, and none is missing.

        At the first looks the holder may as well be dead.
        """
        link = self._last(key)
        return (
            link is not None
            and self._silences.look(link) <= SILENT_BEATS * self.beat_every_s
            and link.owner in self._silences.alive
        )

    def release(self, keys: Iterable[str]) -> None:
        """Release ``keys``; ignore those that are not held."""
        with self._lock:
            for key in keys:
                chain = self._chain(key)
                if chain and chain[-1].owner in self._owners:
                    # Remove the first link first: the remaining links mean nothing without it.
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
        """Renew all leases. The first call starts the heart-beat."""
        if self._heart is not None:
            self._renew()
            return
        self._sweep()
        self._new_owner()
        self._heart = threading.Thread(target=self._beat, name="leases", daemon=True)
        self._heart.start()

    def _sweep(self) -> None:
        """Remove the files of holders that ended.

        Files that cannot be read are removed, too, after a long time without a heart-beat.
        """
        for path in self._file("*").parent.glob("*.json"):
            link = _read(path)
            if link is None or not self._is_gone(link):
                continue
            if link.holder is None:
                logger.warning("Removed %s: it cannot be read and had no sign of life.", path)
            if link.holder is None or link.holder.process.is_dead():
                path.unlink(missing_ok=True)

    def _new_owner(self) -> None:
        """Take a name that is in no chain, and write a file to link to."""
        owner = uuid.uuid4().hex
        holder = Holder(owner=owner, holder=self._holder, process=this_process())
        write_text(self._file(owner), holder.text(indent=None))
        self._owners.append(owner)

    def _file(self, owner: str) -> Path:
        return self._folder / "holders" / f"{owner}.json"

    def _beat(self) -> None:
        while not self._closing.wait(self.beat_every_s):
            self._renew()
            try:
                self._sweep()
            except Exception as error:  # what others left is worth less than this heart-beat
                logger.warning("The leases in %s could not be tidied up: %s", self._folder, error)

    def _renew(self) -> None:
        for owner in tuple(self._owners):
            try:
                os.utime(self._file(owner))
            except OSError as error:
                logger.warning(
                    "The leases in %s could not be renewed, and may expire: %s", self._folder, error
                )

    def _take(self, key: str) -> bool:
        chain = self._chain(key)
        if chain and chain[-1].owner in self._owners:
            return True
        if chain and not self._is_gone(chain[-1]):
            return False
        if chain and chain[-1].holder is None:
            logger.warning("Took over from %s: it had no sign of life.", chain[-1].text)
        if self._successor(key, self._owners[-1]).exists():
            # Another driver took over from this holder while it was suspended. The present name has
            # its place in the chain and cannot get a second one.
            self._new_owner()
        target = self._successor(key, chain[-1].owner) if chain else self._folder / f"{key}.json"
        if not link_first(self._file(self._owners[-1]), target):
            return False
        if self.holds(key):
            return True
        # The chain ended, or a new one began, between the look and the link. So the new link joined
        # nothing.
        target.unlink(missing_ok=True)
        return False

    def _chain(self, key: str) -> list[_Link]:
        """Return the first holder of a lease and its successors, in order."""
        chain: list[_Link] = []
        path = self._folder / f"{key}.json"
        while (link := _read(path)) is not None:
            chain.append(link)
            path = self._successor(key, link.owner)
        return chain

    def _successor(self, key: str, owner: str) -> Path:
        return self._folder / f"{key}.after-{owner}.json"

    def _last(self, key: str) -> _Link | None:
        chain = self._chain(key)
        return chain[-1] if chain else None

    def _age_s(self, link: _Link) -> float:
        """Return the seconds since a heart-beat by the storage's clock; 0 where that is unknown."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".now-") as file:
                return (os.fstat(file.fileno()).st_mtime_ns - link.beat) / 1e9
        except OSError:
            return 0.0

    def _is_gone(self, link: _Link) -> bool:
        silent_s = self._silences.look(link)
        return silent_s > self.expires_s or (
            link.holder is not None and link.holder.process.is_dead()
        )


def _read(path: Path) -> _Link | None:
    """Read a lease; ``None`` where the file does not exist."""
    try:
        # Open the file instead of calling ``stat``: only then does NFS ask the server for the
        # newest heart-beat.
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
        holder = Holder.read(path, "It is taken over when its heart-beat ends.")
        return _Link(path, holder.owner, holder, state.st_mtime_ns)
    except FileNotFoundError:
        return None
    except UnreadableError:
        # The inode identifies the owner: the same file has a name in every chain and one among the
        # holders.
        return _Link(path, f"unreadable-{state.st_ino}", None, state.st_mtime_ns)
