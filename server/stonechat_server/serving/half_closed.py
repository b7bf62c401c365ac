"""Answers a client that has ended its own side of the connection behind a whole request.

A client that has left altogether looks the same at first, and its request must end. So the server
writes at once what every answer begins with: the system of a client that has left resets the
connection.
"""

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

BEGINNING = b"HTTP/1.1 "
"""Of each answer, whatever its status and the version of the request."""
FIRST_DELAY, LAST_DELAY = 0.02, 1.0
"""Seconds between two looks at the connection: the first, and the most."""


class BegunTransport:
    """The transport of an answer whose `BEGINNING` is written."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._num_written = len(BEGINNING)

    def write(self, data: bytes) -> None:
        """Write what is not written yet."""
        self._transport.write(data[self._num_written :])
        self._num_written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def finish(connection: HttpToolsProtocol) -> None:
    """See to it that the connection ends behind its last answer, or once the client has left."""
    cycle: Any = connection.cycle
    if not cycle.response_started and not connection.pipeline:
        connection.transport.write(BEGINNING)
        cycle.transport = BegunTransport(connection.transport)
    on_response = cycle.on_response

    def complete() -> None:
        """Close the connection behind the answer: no other request can come."""
        on_response()
        connection.transport.close()

    cycle.on_response = complete
    _watch(connection, FIRST_DELAY)


def _watch(connection: HttpToolsProtocol, delay: float) -> None:
    """End the connection once the client has reset it: nothing is read that would show it."""
    transport = connection.transport
    if transport.is_closing():
        return
    if transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        transport.abort()
    else:
        connection.loop.call_later(delay, _watch, connection, min(2 * delay, LAST_DELAY))
