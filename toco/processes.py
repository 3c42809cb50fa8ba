"""What processes that this project starts have in common: how they end, and how their errors reach who started them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
import traceback
from collections.abc import Callable

_LOOK_EVERY_S = 1.0


class MachineError(RuntimeError):
    """The machine failed, and not the training: another machine, or the same one later, may succeed."""


def end_with_parent() -> None:
    """End this process at once when the process that asked for it ends, however that happens.

    That process is the one which called ``start``, also where a fork server did the work; without
    one, as under torchrun, it is the parent of this process.
    """
    parent = multiprocessing.parent_process()
    threading.Thread(
        target=_end_after,
        args=(_wait_for_orphanage if parent is None else parent.join,),
        daemon=True,
    ).start()


def sendable(error: Exception, where: str) -> Exception:
    """``error`` as another process can raise it: one of a class that no pickle holds becomes a ``RuntimeError``.

    Args:
        error: What was raised, being handled.
        where: This process, for the traceback that goes with the error as a note.
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


def _wait_for_orphanage() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
