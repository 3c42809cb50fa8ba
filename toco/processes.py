"""Child processes: they end with the parent, pass errors to it, and leave signals to it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

_POLL_S = 1.0  # interval of polling


class MachineError(RuntimeError):
    """The machine failed and not the training: a retry, or another machine, may succeed."""


def end_with_parent() -> None:
    """End this process at once when its parent ends, however that happens.

    The parent is the process that called ``start`` of multiprocessing, also with a fork server.
    Otherwise, as under torchrun, it is the parent process of the system.
    """
    parent = multiprocessing.parent_process()
    threading.Thread(
        target=_end_after,
        args=(_wait_for_parent if parent is None else parent.join,),
        daemon=True,
    ).start()


@contextmanager
def signals_blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Block ``signals`` in this thread and in the processes and threads that the block starts.

    Ctrl-C in a terminal and the signal of a scheduler reach all processes of a job. One of them
    answers, and needs the others until then.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    # Started later, the tracker would unblock the signals, and the fork server inherit that.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def sendable(error: Exception, where: str) -> Exception:
    """Return ``error`` in a form that another process can raise, with its traceback as a note.

    An error that cannot be pickled becomes a ``RuntimeError`` with the same message.

    Args:
        error: The exception that is being handled.
        where: Description of this process, for the note.
    """
    origin = f"{where}:\n{traceback.format_exc()}"
    error.add_note(origin)
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:
        stand_in = RuntimeError(f"{type(error).__name__}: {error}")
        stand_in.add_note(origin)
        return stand_in
    return error


def _end_after(wait: Callable[[], object]) -> None:
    wait()
    os._exit(1)


def _wait_for_parent() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(_POLL_S)
