"""Connections that end when a client is too slow: uvicorn waits for heads of requests and for readers without end."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

# s in which the head of a request must have come, and in which an answer that waits must be taken up again
PATIENCE = 30.0


class PatientProtocol(H11Protocol):
    """HTTP/1.1 with an end to the time that a client may take for the head of a request, or for reading an answer.

    Both are counted whatever trickles: a connection that sends a byte now and then is one of the few that the server
    takes, and a reader who stops would have its turn at the network for ever.
    """

    _head: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the head of the first request."""
        super().connection_made(transport)
        self._head = self.loop.call_later(PATIENCE, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a head, or no longer."""
        super().data_received(data)
        # the cycle of request and response that began last
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel("_head")
        elif self._head is None:
            self._head = self.loop.call_later(PATIENCE, self.transport.abort)

    def pause_writing(self) -> None:
        """Begin to wait for a reader who takes nothing: the buffer is full."""
        super().pause_writing()
        self._reader = self.loop.call_later(PATIENCE, self.transport.abort)

    def resume_writing(self) -> None:
        """Wait no longer: the reader has taken what was there."""
        self._cancel("_reader")
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing."""
        self._cancel("_head")
        self._cancel("_reader")
        super().connection_lost(exc)

    def _cancel(self, name: str) -> None:
        """Stop a timer, by the name of its attribute."""
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
        setattr(self, name, None)
