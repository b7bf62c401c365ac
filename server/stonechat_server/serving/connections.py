"""Closes connections that hold a socket but do nothing, such as after half a request line.

uvicorn has a timeout between requests. It has none for a request that never becomes complete, nor
for the end of an answer that the client does not read.
"""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SILENCE_SECONDS = 30.0


@dataclass(slots=True)
class _Silence:
    since: float
    num_unsent: int


class SilentConnections:
    """Closes connections on which no request has run and nothing was sent for `seconds`."""

    def __init__(self, seconds: float = SILENCE_SECONDS) -> None:
        self._seconds = seconds
        self._silent: dict[int, _Silence] = {}

    def drop(self, connections: Collection[HttpToolsProtocol], now: float) -> int:
        """Close the connections that have been silent for too long, and return their number.

        Call it every second.
        """
        still_silent: dict[int, _Silence] = {}
        num_dropped = 0
        for connection in list(connections):
            if not _is_silent(connection):
                continue
            num_unsent = connection.transport.get_write_buffer_size()
            silence = self._silent.get(id(connection))
            if silence is None or num_unsent != silence.num_unsent:
                silence = _Silence(now, num_unsent)
            if now - silence.since >= self._seconds:
                connection.transport.abort()
                num_dropped += 1
            else:
                still_silent[id(connection)] = silence
        self._silent = still_silent
        return num_dropped


def _is_silent(connection: HttpToolsProtocol) -> bool:
    """Whether it is closing, or runs neither a request nor uvicorn's timer between requests."""
    if connection.transport.is_closing():
        return True
    is_between_requests = connection.cycle is None or connection.cycle.response_complete
    return is_between_requests and connection.timeout_keep_alive_task is None


def allow_many() -> None:
    """Raise the limit on open files, and so on connections, of this process."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
