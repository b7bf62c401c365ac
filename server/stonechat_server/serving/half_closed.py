"""Answers a client that has ended its own side of the connection behind a whole request.

A client that has left altogether looks the same at first, and its request must end. So the server
writes `100 Continue`, which clients pass over (RFC 9110, 15.2): the system of one that has left
resets the connection.
"""

import asyncio
import socket
from typing import TYPE_CHECKING, Any

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
FIRST_DELAY, LAST_DELAY = 0.02, 1.0
"""Seconds between two looks at the connection: the first, and the most."""


class HalfClosed(asyncio.Protocol):
    """The part that both protocols share."""

    _is_half_closed = False

    if TYPE_CHECKING:  # attributes of uvicorn's protocols
        transport: asyncio.Transport
        loop: asyncio.AbstractEventLoop
        cycle: Any

    def eof_received(self) -> bool:
        """Return whether the connection stays open, because an answer is due."""
        cycle = self.cycle
        is_due = cycle is not None and not cycle.more_body and not cycle.response_complete
        if not is_due or not self.transport.can_write_eof():  # TLS ends both sides at once
            return False
        if not self._is_half_closed:
            self._is_half_closed = True
            if not cycle.response_started and cycle.scope["http_version"] == "1.1":
                self.transport.write(CONTINUE)
            self._watch(FIRST_DELAY)
        return True

    def on_response_complete(self) -> None:
        """Close the connection behind the last answer: no other request can come."""
        super().on_response_complete()  # type: ignore[misc]
        if self._is_half_closed and self.cycle.response_complete:
            self.transport.close()

    def _watch(self, delay: float) -> None:
        """End the connection once the client has reset it: nothing is read that would show it."""
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(delay, self._watch, min(2 * delay, LAST_DELAY))
