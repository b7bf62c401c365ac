"""Request ids on every answer, one access line a request, and the last net for exceptions."""

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stonechat_server.errors import server_error, to_api_error, unwrap

access_log = logging.getLogger("stonechat.access")
log = logging.getLogger("stonechat")

_ID = re.compile(r"[\x21-\x7e]{1,128}")


def new_request_id() -> str:
    """A fresh id; unique for all that matters (96 random bits)."""
    return "req_" + secrets.token_hex(12)


class RequestContext:
    """ASGI middleware: `request.state.request_id`, header `x-request-id`, access log, 500s.

    A client's own `x-request-id` is kept when it is 1 to 128 visible ASCII characters.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent_id = Headers(scope=scope).get("x-request-id", "")
        request_id = sent_id if _ID.fullmatch(sent_id) else new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            if status:  # the answer has begun: it can only be cut
                log.exception("request %s failed after its answer began", request_id)
                raise
            known = to_api_error(unwrap(error))
            if known is None:
                log.exception("request %s failed", request_id)
            await (known or server_error()).response()(scope, receive, send_with_id)
        finally:
            access_log.info(
                '%s "%s %s" %d %.1f ms',
                request_id,
                scope["method"],
                scope["path"],
                status,
                (time.perf_counter() - started) * 1000,
            )


def configure_logging(level: str) -> None:
    """Send the server's log lines to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("stonechat")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
