"""Limits on the time, connections and memory that a client of the demo may use.

uvicorn limits the bytes of a header, and answers 503 beyond a number of connections. But it waits
forever for a half-sent request, and keeps any number of such connections. :func:`limited_protocol`
ends them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from uvicorn.protocols.http.h11_impl import H11Protocol

from toco.data.files.images import MAX_PIXELS


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the demo.

    Attributes:
        upload_bytes: Larger files are refused.
        pixels: Images with more pixels are refused before they are decoded.
        uploads: Uploads in memory at once; others wait.
        connections: With more connections, requests are answered with 503. With more than twice as
            many, connections are closed.
        head_s: Time for the header of a request, and for bytes after an early answer.
        upload_s: Time for the body of an upload.
    """

    upload_bytes: int = 32 * 2**20
    pixels: int = MAX_PIXELS
    uploads: int = 2
    connections: int = 64
    head_s: float = 10.0
    upload_s: float = 60.0


def limited_protocol(limits: Limits) -> type[H11Protocol]:
    """Return uvicorn's connection class with a limit on time and on their number.

    A connection is closed if its request does not arrive in time, or if there are too many.
    """

    class Connection(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        # uvicorn, too, narrows the type of transport.
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > 2 * limits.connections:
                transport.abort()
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._forget()

        def _watch(self) -> None:
            """Run the clock unless a request is being answered; incoming bytes do not reset it."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(limits.head_s, self.transport.abort)

        def _forget(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Connection
