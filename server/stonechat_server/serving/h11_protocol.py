"""uvicorn's protocol over h11, for Pythons without httptools, with the bounds of `http_limits`."""

import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from stonechat_server.serving.http_limits import (
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    FramingError,
    Refusing,
    check_framing,
    malformed,
    too_large,
    unknown_coding,
)

PIECE_BYTES = 16_384
"""h11 compares its buffer with the bound only after it has parsed what it was given."""

H11_ERRORS = {431: too_large, 501: unknown_coding}
"""By the status that h11 suggests."""


class LimitedConnection(h11.Connection):
    """Checks the headers and trailers that h11 has parsed. h11 itself bounds what is incomplete."""

    def next_event(self) -> Any:
        event = super().next_event()
        try:
            if isinstance(event, h11.Request | h11.EndOfMessage):
                too_many = len(event.headers) > MAX_FIELDS
                if too_many or _size(event) > MAX_HEAD_BYTES:
                    raise FramingError(too_large())
            if isinstance(event, h11.Request):
                check_framing(event.headers, event.http_version.decode())
        except FramingError as error:
            raise h11.RemoteProtocolError("refused") from error
        return event


def _size(event: h11.Request | h11.EndOfMessage) -> int:
    target = event.target if isinstance(event, h11.Request) else b""
    return len(target) + sum(len(name) + len(value) for name, value in event.headers)


class LimitedH11(Refusing, H11Protocol):  # type: ignore[misc]
    """Feeds the parser small pieces, so that its buffer stays small."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = LimitedConnection(h11.SERVER, MAX_HEAD_BYTES)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE_BYTES):
            if self.is_refused:
                return
            super().data_received(data[start : start + PIECE_BYTES])

    def send_400_response(self, msg: str) -> None:
        error = sys.exception()
        if error is not None and isinstance(error.__cause__, FramingError):
            self.refuse(error.__cause__.error)
        else:
            hint = getattr(error, "error_status_hint", 400)
            self.refuse(H11_ERRORS.get(hint, malformed)())

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: a client may offer another protocol, and the server need not take it."""

    def shutdown(self) -> None:
        if self.is_refused:  # h11 does not take part in the end of such a connection
            self.transport.close()
        else:
            super().shutdown()
