"""Adds request ids, writes the access log, and answers exceptions that nothing else handled."""

import asyncio
import logging
import re
import secrets
import sys
import time
from collections.abc import Callable
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stonechat_server.errors import ErrorAnswer, server_error, to_api_error, unwrap
from stonechat_server.observability.json_log import JsonFormatter

access_log = logging.getLogger("stonechat.access")
log = logging.getLogger("stonechat")

REQUESTS_A_ROUND = 4
"""With fewer, the last of 64 that come at once waits longer; with more, streams that run do."""

_ID = re.compile(r"[\x21-\x7e]{1,128}")


def new_request_id() -> str:
    """A new request id, unique in practice (96 random bits)."""
    return "req_" + secrets.token_hex(12)


class RequestContext:
    """ASGI middleware: request ids, the access log, and error answers for exceptions.

    A few requests begin in a round of the event loop. If many come at once, streams that run get
    their tokens in between.

    The id is in `request.state.request_id`, and in the answer's `x-request-id` and `request-id`. A
    client's own `x-request-id` is kept if it has 1 to 128 characters of visible ASCII. A
    route may send its body, but not its start, by `request.state.send_body`, past other middleware.
    `on_response` receives the route's pattern and the status of every answer.

    A route may add to `request.state.at_end` what is called when the request has ended, the latest
    first. It may also set `request.state.log_fields`, which are added to the access line, and
    `request.state.log_level`, the level of that line (default: INFO). If `limit_headers` is set,
    the headers that it returns are added to the answer. An unknown exception is logged and
    answered with 500, by `error_answer`.
    """

    def __init__(
        self, app: ASGIApp, on_response: Callable[[str, int], None], error_answer: ErrorAnswer
    ) -> None:
        self.app = app
        self._on_response = on_response
        self._error_answer = error_answer
        self._places = asyncio.Semaphore(REQUESTS_A_ROUND)
        """Held by the requests that begin in this round of the event loop."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":  # as GET; the HTTP server leaves the body out
            scope = {**scope, "method": "GET"}
        header_id = Headers(scope=scope).get("x-request-id", "")
        request_id = header_id if _ID.fullmatch(header_id) else new_request_id()
        scope.setdefault("state", {}).update(request_id=request_id, send_body=send, at_end=[])
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["request-id"] = request_id  # the name that Anthropic's clients read
                limit_headers = scope["state"].get("limit_headers")
                if limit_headers is not None:
                    headers.update(limit_headers())
            await send(message)

        try:
            await self._places.acquire()
            asyncio.get_running_loop().call_soon(self._places.release)
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            if status:  # the answer has begun: an error answer is too late
                log.exception("request %s failed after its answer began", request_id)
                raise
            api_error = to_api_error(unwrap(error))
            if api_error is None:
                log.exception("request %s failed", request_id)
            answer = self._error_answer(api_error or server_error(), scope)
            await answer(scope, receive, send_with_id)
        finally:
            for end in reversed(scope["state"]["at_end"]):
                end()
            self._log(scope, method, status, (time.perf_counter() - started) * 1000)

    def _log(self, scope: Scope, method: str, status: int, milliseconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._on_response(route, status)
        fields: dict[str, object] = {
            "request_id": scope["state"]["request_id"],
            "method": method,
            "path": quote(scope["path"]),  # a decoded line break would start a new log line
            "status": status,
            "milliseconds": round(milliseconds, 1),
            **scope["state"].get("log_fields", {}),
        }
        line = " ".join(f"{name}={value}" for name, value in fields.items())
        level = scope["state"].get("log_level", logging.INFO)
        access_log.log(level, line, extra={"fields": fields})


class StderrHandler(logging.Handler):
    """Writes each line to the current `sys.stderr`, which may be replaced or closed."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr
        if stream is None or stream.closed:
            return
        try:
            stream.write(self.format(record) + "\n")
            stream.flush()
        except Exception:
            self.handleError(record)


def configure_logging(level: str, format: str = "text") -> None:
    """Send the server's log lines to stderr, as `text` for people or as `json`."""
    handler = StderrHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if format == "json" else text)
    for name in ("stonechat", "stonechat_models", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper() if name == "stonechat" else max_level(level, "WARNING"))
        logger.propagate = False


def max_level(*names: str) -> int:
    """The most severe of these levels."""
    return max(logging.getLevelNamesMapping()[name.upper()] for name in names)
