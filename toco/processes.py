"""Helpers for child processes: end with the parent, and pass errors to the parent."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
import traceback
from collections.abc import Callable

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
