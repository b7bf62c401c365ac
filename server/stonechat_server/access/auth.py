"""API keys: which of them a request carries."""

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from starlette.requests import Request

from stonechat_server.access.keys import ANONYMOUS, ApiKey, KeyStore
from stonechat_server.admission.deadline import HEADER as TIMEOUT_HEADER
from stonechat_server.errors import APIError


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, and what the headers say of the deadline and the trace."""

    key: ApiKey
    flow: str
    """What fairness is kept between: the key, or the client's address where there is none."""
    timeout: str | None = None
    traceparent: str | None = None
    log_fields: dict[str, object] = field(default_factory=dict, compare=False)
    """Joins the access line of the request."""


class Authenticator:
    """Checks `Authorization: Bearer KEY`. Without any key the server is open."""

    def __init__(
        self,
        keys: Iterable[str],
        store: KeyStore | None = None,
        limit_headers: Callable[[ApiKey], Mapping[str, str]] = lambda _: {},
    ) -> None:
        self._limit_headers = limit_headers
        self._digests = [_digest(key) for key in keys]
        self._store = store

    @property
    def is_open(self) -> bool:
        """True when no key is needed."""
        return not self._digests and self._store is None

    def identify(self, request: Request) -> Identity:
        """Raises `APIError` 401 for a missing or unknown key."""
        headers = request.headers
        key = ANONYMOUS if self.is_open else self._authenticate(headers.get("authorization", ""))
        address = request.client.host if request.client else ""
        flow = f"client:{address}" if self.is_open else f"key:{key.name}"
        fields: dict[str, object] = {"key": key.name}
        request.state.log_fields = fields
        request.state.limit_headers = partial(self._limit_headers, key)
        return Identity(key, flow, headers.get(TIMEOUT_HEADER), headers.get("traceparent"), fields)

    def _authenticate(self, header: str) -> ApiKey:
        scheme, _, secret = header.partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise _unauthorized("No API key was sent. Expected: 'Authorization: Bearer KEY'.")
        digest = _digest(secret)
        # Every known key is compared, so that the time taken does not tell which one came close.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if any(matches):
            return ApiKey(name="key-" + digest.hex()[:12])
        key = self._store.find(secret) if self._store is not None else None
        if key is None:
            raise _unauthorized("The API key is not known here.")
        return key


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _unauthorized(message: str) -> APIError:
    return APIError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
