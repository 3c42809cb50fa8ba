"""Turn Ctrl-C, SIGTERM and SIGUSR1 into ``KeyboardInterrupt``, but never during an import.

An exception during an import may leave a library half imported, or the library may treat it as an
import error. A signal that arrives during an import therefore takes effect after the import. A
second signal ends the process at once.

Schedulers announce the end of a job by SIGTERM or by a signal of the user's choice, mostly SIGUSR1.

This module imports almost nothing, because a command installs the handlers before other imports.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

ANNOUNCEMENTS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals by which a scheduler announces the end of a job, often to all of its processes."""
SIGNALS = (signal.SIGINT, *ANNOUNCEMENTS)
_WAIT_S = 0.05
"""Interval at which the end of an import is checked."""
_SAME_SIGNAL_S = 1.0
"""Signals within this time count as one: ``timeout`` signals a process and also its group."""
_received: int = signal.SIGINT
_received_at: float | None = None
_is_deferred = False
_is_installed = False


def install_handlers() -> None:
    """Install handlers that raise ``KeyboardInterrupt`` for Ctrl-C, SIGTERM and SIGUSR1.

    Signals that the process ignores stay ignored.
    """
    global _is_installed
    _is_installed = True
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)


def install_handlers_in_script(package: str) -> None:
    """Call :func:`install_handlers` if the running script lies in the folder of ``package``.

    ``package`` is the ``__file__`` of a module in this folder.
    """
    if Path(sys.argv[0]).resolve().parent == Path(package).resolve().parent:
        install_handlers()


def reinstall_handlers() -> None:
    """Install the handlers again after a library replaced them, if they were installed."""
    if _is_installed:
        install_handlers()


def was_received() -> bool:
    """Return whether this process has received a signal."""
    return _received_at is not None


@contextmanager
def deferred() -> Iterator[None]:
    """Let the first signal in the block raise nothing, so that work can be brought to an end.

    The block asks :func:`was_received`. A second signal interrupts the block, a third one ends the
    process.
    """
    global _is_deferred
    _is_deferred = not was_received()
    try:
        yield
    finally:
        _is_deferred = False


def interrupt_main() -> None:
    """Raise ``KeyboardInterrupt`` in the main thread, also where signals are deferred.

    For another thread that finds out that the work cannot continue.
    """
    global _is_deferred, _received_at
    _is_deferred, _received_at = False, None
    _thread.interrupt_main()


def restore_default_handlers() -> None:
    """Let the signals end the process at once, for the last steps of a program."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (*SIGNALS, signal.SIGALRM):
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)


def record(number: int) -> None:
    """Record a signal that another handler received, for :func:`exit_status`."""
    global _received
    _received = number


def exit_status() -> int:
    """Return the exit status for the last signal: 130 for Ctrl-C, 143 for SIGTERM, for example."""
    return 128 + _received


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _received, _received_at, _is_deferred
    if number != signal.SIGALRM:
        time_s = time.monotonic()
        is_further = _received_at is not None and time_s - _received_at > _SAME_SIGNAL_S
        if is_further and not _is_deferred:
            os._exit(exit_status())
        _received = number
        if _received_at is None or is_further:
            _received_at = time_s
        if _is_deferred and not is_further:
            return
        _is_deferred = False
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            signal.setitimer(signal.ITIMER_REAL, _WAIT_S)
            return
        frame = frame.f_back
    raise KeyboardInterrupt
