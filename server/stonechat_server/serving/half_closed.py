"""Answers a client that has ended its own side of the connection behind a whole request.

A client that has left altogether looks the same at first, and its request must end. So the server
writes at once what every answer begins with: the system of a client that has left resets the
connection.
"""

import asyncio
import socket
from typing import Any, Protocol

BEGINNING = b"HTTP/1.1 "
"""Of each answer, whatever its status and the version of the request."""
FIRST_DELAY, LAST_DELAY = 0.02, 1.0
"""Seconds between two looks at the connection: the first, and the most."""


class Connection(Protocol):
    """What is needed of uvicorn's protocols."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    cycle: Any

    def is_answering_another(self) -> bool:
        """Whether the answer to a request before `cycle` is not complete."""


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


def finish(connection: Connection) -> None:
    """See to it that the connection ends behind its last answer, or once the client has left."""
    cycle = connection.cycle
    if not cycle.response_started and not connection.is_answering_another():
        connection.transport.write(BEGINNING)
        cycle.transport = BegunTransport(connection.transport)
    _close_behind(connection, cycle)
    _watch(connection, FIRST_DELAY)


def _close_behind(connection: Connection, cycle: Any) -> None:
    """Close the connection behind the last answer: no other request can come."""
    on_response = cycle.on_response

    def complete() -> None:
        on_response()
        if connection.cycle is cycle:
            connection.transport.close()
        else:  # h11 has read another request only now
            _close_behind(connection, connection.cycle)

    cycle.on_response = complete


def _watch(connection: Connection, delay: float) -> None:
    """End the connection once the client has reset it: nothing is read that would show it."""
    transport = connection.transport
    if transport.is_closing():
        return
    if transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        transport.abort()
    else:
        connection.loop.call_later(delay, _watch, connection, min(2 * delay, LAST_DELAY))
