"""Turn Ctrl-C and SIGTERM into ``KeyboardInterrupt``, but never during an import.

An exception during an import may leave a library half imported, or the library may treat it as an
import error. A signal that arrives during an import therefore takes effect after the import. A
second signal ends the process at once.

This module imports almost nothing, because a command installs the handlers before other imports.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WAIT_S = 0.05
"""Interval at which the end of an import is checked."""
_SAME_SIGNAL_S = 1.0
"""Signals within this time count as one: ``timeout`` signals a process and also its group."""
_received: int = signal.SIGINT
_received_at: float | None = None
_is_installed = False


def install_handlers() -> None:
    """Install handlers that raise ``KeyboardInterrupt`` for Ctrl-C and SIGTERM.

    Signals that the process ignores stay ignored.
    """
    global _is_installed
    _is_installed = True
    for number in _SIGNALS:
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


def check() -> None:
    """Raise ``KeyboardInterrupt`` again after a signal, in case a library swallowed the first."""
    if _received_at is not None:
        raise KeyboardInterrupt


def restore_default_handlers() -> None:
    """Let Ctrl-C and SIGTERM end the process at once, for the last steps of a program."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (*_SIGNALS, signal.SIGALRM):
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)


def record(number: int) -> None:
    """Record a signal that another handler received, for :func:`exit_status`."""
    global _received
    _received = number


def exit_status() -> int:
    """Return the exit status for the last signal: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + _received


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _received, _received_at
    if number != signal.SIGALRM:
        time_s = time.monotonic()
        if _received_at is not None and time_s - _received_at > _SAME_SIGNAL_S:
            os._exit(exit_status())
        _received, _received_at = number, _received_at or time_s
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            signal.setitimer(signal.ITIMER_REAL, _WAIT_S)
            return
        frame = frame.f_back
    raise KeyboardInterrupt
