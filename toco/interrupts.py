"""Ctrl-C and SIGTERM as an exception that every ``finally`` sees, but never in the middle of an import.

An exception inside an import leaves a library half imported, or the library takes it for a fault of
its own. A signal that comes during an import therefore waits until the import has ended. A second
signal ends the process at once.

This module imports next to nothing: a command takes the signals before it imports what it needs.
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
"""Between looks at whether an import has ended."""
_ONE_WISH_S = 1.0
"""Signals that come within this time are one: ``timeout`` sends its own to a process and to its group."""
_received: int = signal.SIGINT
_received_at: float | None = None
_is_taken = False


def take() -> None:
    """From now on raise ``KeyboardInterrupt`` for Ctrl-C and for SIGTERM. What is ignored stays ignored."""
    global _is_taken
    _is_taken = True
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)


def take_in_script(package: str) -> None:
    """:func:`take`, if the program that runs is a file of the folder of ``package``, which is its ``__file__``."""
    if Path(sys.argv[0]).resolve().parent == Path(package).resolve().parent:
        take()


def take_again() -> None:
    """Take the signals back from a library that set handlers of its own, if this process had taken them."""
    if _is_taken:
        take()


def check() -> None:
    """Raise ``KeyboardInterrupt`` again after a signal: a callback of a library may have lost the first."""
    if _received_at is not None:
        raise KeyboardInterrupt


def give_up() -> None:
    """From now on let Ctrl-C and SIGTERM end the process at once: nothing but its end is left to do."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (*_SIGNALS, signal.SIGALRM):
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)


def record(number: int) -> None:
    """Note a signal that another handler received and obeys, for :func:`exit_status`."""
    global _received
    _received = number


def exit_status() -> int:
    """What a shell expects of a process that the last signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + _received


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _received, _received_at
    if number != signal.SIGALRM:
        now = time.monotonic()
        if _received_at is not None and now - _received_at > _ONE_WISH_S:
            os._exit(exit_status())
        _received, _received_at = number, _received_at or now
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            signal.setitimer(signal.ITIMER_REAL, _WAIT_S)
            return
        frame = frame.f_back
    raise KeyboardInterrupt
