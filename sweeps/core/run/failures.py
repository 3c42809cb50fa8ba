"""Failed attempts: whose fault they are, whether a trial starts again, which nodes are excluded."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Literal

from toco.files import is_no_room
from toco.processes import MachineError

LONGEST_TRACE = 8000
"""Characters that are stored of a trace, from its end. The cause stands at the end.

About a hundred lines, enough for one chain of calls through torch.
"""
TRIALS_TO_LEAVE_OUT = 2
"""Number of trials that must fail by a node's fault before the node gets no more trials.

One failure may have a passing cause. Each further trial on a broken node costs its time.
"""
MOST_MACHINE_FAILURES = 10
"""Number of machine failures that do not count against a trial.

A choice: a trial that breaks every machine must end at some time.
"""

_MACHINE = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "EROFS", "ENODEV", "ENXIO", "ESTALE", "EREMOTEIO"),
        *("EMFILE", "ENFILE", "ENOMEM", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN"),
    )
    if hasattr(errno, name)
)
"""Errors of the operating system that another machine may not have: disk, memory, limits."""
_MACHINE_TEXTS = (
    "CUDA",
    "cuDNN",
    "CUBLAS",
    "NCCL",
    "unable to allocate shared memory",
    "out of shared memory",
    "insufficient shared memory",
    "Bus error",
)
"""Texts in torch's errors that mean a fault of the machine, where the error has no own class."""

Kind = Literal["trial", "hopeless", "machine", "lost", "room", "storage", "left out", "stopped"]


class HeadLostError(ConnectionError):
    """Ray's head does not answer any more."""


class LeftOutError(RuntimeError):
    """A trial was placed on an excluded node; it starts again on another one."""


class StoppedError(RuntimeError):
    """A trial was asked to stop, and has stored all that it has computed."""


class ScratchError(RuntimeError):
    """A node's disk has no room for a trial. The message names folder and bytes."""


class StorageError(RuntimeError):
    """The folder that all nodes share has no room. The message names folder and bytes."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt of a trial.

    Attributes:
        kind: ``trial``: the training raised an error, and a restart may succeed. ``hopeless``: a
            restart would fail in the same way. ``machine``: a fault of the node. ``lost``: the
            worker process ended without a message. ``room``: the node's disk is full. ``storage``:
            the folder that all nodes share is full. ``left out``: the node gets no trials any more.
            ``stopped``: no failure, the trial was asked to stop.
        reason: The reason in one line.
        trace: The end of the trace.
        host: Name of the machine; empty where the attempt ended before it reported its place.
        node: Ray's id of the node; empty where ``host`` is, and for a failure in the driver.
    """

    kind: Kind
    reason: str
    trace: str
    host: str
    node: str

    @property
    def sentence(self) -> str:
        """Reason and machine, for a log line."""
        return f"{self.reason} (on {self.host})" if self.host else self.reason


_KINDS: tuple[tuple[type[Exception], Kind], ...] = (
    (ValueError, "hopeless"),
    (LeftOutError, "left out"),
    (StoppedError, "stopped"),
    (StorageError, "storage"),
    (ScratchError, "room"),
    (MachineError, "machine"),
    (MemoryError, "machine"),
)


def kind_of(error: BaseException) -> Kind:
    """Classify an exception that a trial raised.

    It is a failure of the machine where the trial may succeed on another machine.
    """
    for error_type, kind in _KINDS:
        if isinstance(error, error_type):
            return kind
    if is_no_room(error):
        return "room"
    is_machines = isinstance(error, OSError) and error.errno in _MACHINE
    says_so = isinstance(error, RuntimeError) and any(text in str(error) for text in _MACHINE_TEXTS)
    return "machine" if is_machines or says_so else "trial"


def failure_of(error: BaseException, host: str, node: str) -> Failure:
    """Describe the exception ``error``, raised on a node, for the driver."""
    reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
    trace = "".join(traceback.format_exception(error))[-LONGEST_TRACE:]
    if not isinstance(error, ScratchError | StorageError):
        reason = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return Failure(kind_of(error), reason, trace, host, node)


@dataclass(frozen=True, slots=True)
class Decision:
    """The consequence of a failure.

    Attributes:
        starts_again: Whether the trial is tried again.
        left_out: A message about the node that gets no more trials from now on.
        no_room: A message where the storage, or every node that the trial may use, has no room. The
            driver ends. Such a failure counts neither against the trial nor against a node.
    """

    starts_again: bool
    left_out: str | None = None
    no_room: str | None = None


class Attempts:
    """Count failures by trial and by node, and decide what follows.

    A failure of a machine does not count against its trial while there is a node that the trial has
    not failed on. A trial that has failed on all nodes, or ``MOST_MACHINE_FAILURES`` times, is
    itself the cause: its failures count against the trial, and no longer against any node.

    Args:
        max_failures: Number of restarts of a trial; -1 for any number.
        nodes: Returns the nodes that could hold a trial now.
    """

    def __init__(self, max_failures: int, nodes: Callable[[], Set[str]]) -> None:
        self._max_failures = max_failures
        self._nodes = nodes
        self._counted: dict[str, int] = {}
        self._forgiven: dict[str, int] = {}
        # For each node, the trials that failed there by the machine's fault.
        self._failed_on: dict[str, set[str]] = {}
        self._to_blame: set[str] = set()
        self._left_out: set[str] = set()

    def failed(self, key: str, failure: Failure) -> Decision:
        """Record a failure of the trial ``key`` and decide what follows."""
        if failure.kind == "hopeless":
            return Decision(starts_again=False)
        if failure.kind in ("left out", "stopped"):
            return Decision(starts_again=True)
        if failure.kind == "storage" or (
            failure.kind == "room" and not self._untried(key, failure.node)
        ):
            return Decision(starts_again=True, no_room=failure.sentence)
        if (
            failure.kind in ("machine", "lost", "room")
            and failure.node
            and self._is_forgiven(key, failure.node)
        ):
            return Decision(starts_again=True, left_out=self._leave_out(failure))
        count = self._counted[key] = self._counted.get(key, 0) + 1
        return Decision(self._max_failures < 0 or count <= self._max_failures)

    def forget(self, key: str) -> None:
        """Reset the counts of a trial, which will now be trained instead of evaluated."""
        self._counted.pop(key, None)
        self._forgiven.pop(key, None)

    def avoided(self, key: str) -> frozenset[str]:
        """Return the nodes that the next attempt of a trial should not use; never all nodes."""
        failed_nodes = {
            node
            for node, keys in self._failed_on.items()
            if key in keys and key not in self._to_blame
        }
        avoided = failed_nodes | self.left_out
        return frozenset(avoided) if self._nodes() - avoided else self.left_out

    @property
    def left_out(self) -> frozenset[str]:
        """Nodes that get no more trials at present; empty while no other node exists."""
        return frozenset(self._left_out) if self._nodes() - self._left_out else frozenset()

    def _is_forgiven(self, key: str, node: str) -> bool:
        """Record a failure of a machine; return whether it does not count against the trial."""
        untried = self._untried(key, node)
        self._failed_on.setdefault(node, set()).add(key)
        forgiven = self._forgiven.get(key, 0)
        if key in self._to_blame or not untried or forgiven >= MOST_MACHINE_FAILURES:
            self._to_blame.add(key)
            self._left_out = {candidate for candidate in self._left_out if self._is_bad(candidate)}
            return False
        self._forgiven[key] = forgiven + 1
        return True

    def _untried(self, key: str, node: str) -> set[str]:
        """Return the nodes in use, except ``node``, that a trial has not failed on."""
        usable = self._nodes() - self._left_out - {node}
        return {other for other in usable if key not in self._failed_on.get(other, ())}

    def _leave_out(self, failure: Failure) -> str | None:
        node = failure.node
        if (
            node in self._left_out
            or not self._is_bad(node)
            or not self._nodes() - self._left_out - {node}
        ):
            return None
        self._left_out.add(node)
        return (
            f"{failure.host or node} gets no more trials: {TRIALS_TO_LEAVE_OUT} failed there by "
            f"the machine's fault, at last: {failure.reason}"
        )

    def _is_bad(self, node: str) -> bool:
        return len(self._failed_on.get(node, set()) - self._to_blame) >= TRIALS_TO_LEAVE_OUT
