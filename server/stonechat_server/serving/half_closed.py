"""Answers a client that has ended its own side of the connection behind a whole request.

A client that has left altogether looks the same at first, and its request must end. So the server
writes `100 Continue`, which clients pass over (RFC 9110, 15.2): the system of one that has left
resets the connection.
"""

import asyncio
import socket
from typing import Any, Protocol

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
FIRST_DELAY, LAST_DELAY = 0.02, 1.0
"""Seconds between two looks at the connection: the first, and the most."""


class Connection(Protocol):
    """What is needed of uvicorn's protocols."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    cycle: Any


def finish(connection: Connection) -> None:
    """See to it that the connection ends behind its last answer, or once the client has left."""
    cycle = connection.cycle
    if not cycle.response_started and cycle.scope["http_version"] == "1.1":
        connection.transport.write(CONTINUE)
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
