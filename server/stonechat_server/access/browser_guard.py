"""Keeps other web sites out, with headers on every answer and checks of `Host` and `Origin`.

Any page that is open in a browser on the same machine can reach a server without keys. So a request
from a page of another origin is refused unless that origin is allowed. And an open server answers
only to host names that nobody else can point at it (DNS rebinding).
"""

import ipaddress
import socket
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stonechat_server.errors import APIError, ErrorAnswer

HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
NO_SNOOPING_POLICY = "default-src 'none'; frame-ancestors 'none'"
CORS_METHODS = "GET, POST, DELETE, OPTIONS"
CORS_SECONDS = "600"


class BrowserGuard:
    """ASGI middleware that adds security headers and refuses foreign hosts and origins.

    If `allowed_hosts` is None, any `Host` is accepted, because keys protect the server. Only
    `cors_origins` get CORS headers, which never allow credentials. `error_answer` makes the answer
    of a refusal.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        cors_origins: Collection[str],
        allowed_hosts: Collection[str] | None,
        error_answer: ErrorAnswer,
    ) -> None:
        self.app = app
        self._error_answer = error_answer
        self._origins = {origin.rstrip("/").lower() for origin in cors_origins}
        self._hosts = None if allowed_hosts is None else {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Headers(scope=scope)
        origin = request.get("origin", "").lower()
        is_allowed = bool(origin) and ("*" in self._origins or origin in self._origins)
        cors = _cors_headers(origin, request) if is_allowed else {}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("content-security-policy", NO_SNOOPING_POLICY)
                headers.update(cors)
            await send(message)

        refusal = self._refusal(request, origin, is_allowed)
        if refusal is not None:
            await self._error_answer(refusal, scope)(scope, receive, send_with_headers)
        elif is_allowed and _is_preflight(scope, request):
            await _no_content(send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)

    def _refusal(self, request: Headers, origin: str, is_allowed: bool) -> APIError | None:
        host = request.get("host", "").lower()
        has_host = "host" in request  # HTTP/1.0 needs none, and browsers always send it
        if has_host and self._hosts is not None and not is_own_host(host, self._hosts):
            message = "This server does not accept that Host; see --allowed-host."
            return APIError(403, message, code="host_not_allowed")
        if origin and not is_allowed and not _is_same_origin(origin, host):
            message = "Pages of that origin may not use this server; see --cors-origin."
            return APIError(403, message, code="origin_not_allowed")
        return None


def own_names(listen_host: str, extra_names: Collection[str]) -> set[str]:
    """The host names that an open server answers to. It answers to any IP address as well."""
    return {"localhost", socket.gethostname().lower(), listen_host.lower(), *extra_names}


def _is_same_origin(origin: str, host: str) -> bool:
    """Whether a page of `origin` came from the host and port of the `Host` header."""
    return bool(host) and origin in (f"http://{host}", f"https://{host}")


def is_own_host(host: str, names: Collection[str]) -> bool:
    """Whether a `Host` header has one of these names, or an IP address. It may have a port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.rstrip(".") in names or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_preflight(scope: Scope, request: Headers) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in request


def _cors_headers(origin: str, request: Headers) -> dict[str, str]:
    headers = {
        "access-control-allow-origin": origin,
        "access-control-expose-headers": "*",
        "cross-origin-resource-policy": "cross-origin",
        "vary": "Origin",
    }
    if "access-control-request-method" in request:
        requested_headers = request.get("access-control-request-headers", "")
        headers["access-control-allow-methods"] = CORS_METHODS
        headers["access-control-allow-headers"] = requested_headers
        headers["access-control-max-age"] = CORS_SECONDS
    return headers


async def _no_content(send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})
