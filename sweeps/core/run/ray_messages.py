"""Messages between a driver and its workers at the head of the cluster.

A driver asks trials to stop, and workers show signs of life. The head answers at once, which a file
on a network disk may not. No process of its own is needed, as for an actor.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager

import ray
from ray._private.state import state
from ray.exceptions import RayError
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_put,
)

ASK_EVERY_S = 0.5
"""Seconds between two questions of a worker to the head, each with a sign of life."""
_NAMESPACE = "toco"
_EVERYWHERE = "*"

logger = logging.getLogger(__name__)


class Messages:
    """The messages between one driver and its workers, on the driver's side.

    Args:
        session: Name of the driver's session, unique in the cluster.
    """

    def __init__(self, session: str) -> None:
        self._session = session
        self._posted: list[str] = []

    def ask_to_stop(self, nodes: Set[str], *, everywhere: bool) -> None:
        """Ask the trials on ``nodes`` to stop, or those on all nodes.

        A node that is not named any more is free again.
        """
        wanted = [_EVERYWHERE] if everywhere else sorted(nodes)
        if wanted != self._posted:
            _internal_kv_put(self._session, json.dumps(wanted), True, namespace=_NAMESPACE)
            self._posted = wanted

    def life(self, node: str) -> bytes | None:
        """Return a value that changes with every sign of life from ``node``; ``None`` before."""
        found: bytes | None = _internal_kv_get(_life_key(self._session, node), namespace=_NAMESPACE)
        return found

    def close(self) -> None:
        """Remove all messages; a lost head has none."""
        if ray.is_initialized():
            try:
                _internal_kv_del(self._session, del_by_prefix=True, namespace=_NAMESPACE)
            except (RayError, RuntimeError, OSError) as error:
                logger.debug("The messages to the workers could not be removed: %s", error)


def _life_key(session: str, node: str) -> str:
    return f"{session}/{node}"


def draining_nodes() -> frozenset[str]:
    """Return the nodes that are about to end: a scheduler or a cloud takes them back."""
    return frozenset(state.get_draining_nodes())


@contextmanager
def watched(session: str, node: str, stop: threading.Event) -> Iterator[None]:
    """Set ``stop`` within the block as soon as the trials on ``node`` have to stop.

    Meanwhile the node shows signs of life.
    """
    closing = threading.Event()

    def ask() -> None:
        while not closing.wait(ASK_EVERY_S):
            try:
                _internal_kv_put(
                    _life_key(session, node), str(time.time()), True, namespace=_NAMESPACE
                )
                posted = _internal_kv_get(session, namespace=_NAMESPACE)
            except (RayError, RuntimeError, OSError):
                continue  # the head is lost or busy; its loss is noticed elsewhere
            if posted is not None and {node, _EVERYWHERE} & set(json.loads(posted)):
                stop.set()

    thread = threading.Thread(target=ask, name="messages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        closing.set()
        thread.join(ASK_EVERY_S)
