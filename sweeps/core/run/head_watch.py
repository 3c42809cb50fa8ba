"""Notices that the head of a cluster is lost, so that a driver ends with a sentence and does not wait for ever."""

from __future__ import annotations

import _thread
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

ASK_EVERY_S, PATIENCE_S = 2.0, 20.0
"""How often the head is asked, and for how long it may not answer. Ray itself ends the process after 60 s."""
UNWINDING_S = 10.0
"""Time for this process to end after its head was lost; it may wait for an answer of the head all the while."""


class HeadWatch:
    """Asks the head of the cluster whether it is there; interrupts the main thread when the head is lost.

    Args:
        address: Host and port of the head.
        has_nodes: Whether the cluster has a living node. A local Ray is lost with its only node, since its head waits
            for other nodes without end; where nodes may join, nobody needs to ask.
    """

    def __init__(self, address: str, has_nodes: Callable[[], bool] | None = None) -> None:
        self._address = address
        self._has_nodes = has_nodes
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ray-head", daemon=True)
        self.is_lost = False

    @property
    def loss(self) -> str:
        """What to say of a head that is lost."""
        return f"Ray's head at {self._address} is lost. The same command goes on from here."

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def close(self) -> None:
        """Stop asking; where the head is lost, end Ray's processes on this machine, which wait for it."""
        self._closing.set()
        if self.is_lost:
            _kill_children()

    def answers(self) -> bool:
        """Whether the head takes connections, and has a node if it needs one."""
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_EVERY_S).close()
        except OSError:
            return False
        return self._has_nodes is None or self._has_nodes()

    def _watch(self) -> None:
        answered = time.monotonic()
        while not self._closing.wait(ASK_EVERY_S):
            if self.answers():
                answered = time.monotonic()
            elif time.monotonic() - answered > PATIENCE_S:
                break
        else:
            return
        self.is_lost = True
        _thread.interrupt_main()
        time.sleep(UNWINDING_S)
        # This thread ends with the process, so that the main thread still waits here: for the head, or for MLflow.
        if not self._closing.is_set():
            _kill_children()
        print(f"Error: {self.loss}", file=sys.stderr, flush=True)  # noqa: T201 - the last word of the process
        os._exit(1)


def _kill_children() -> None:
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
