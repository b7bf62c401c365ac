"""Finds the API key that a request carries, and checks which models the key may use."""

import hmac
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request

from stonechat_server.access.keys import ANONYMOUS, ApiKey, KeyStore, digest_of
from stonechat_server.errors import APIError


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sent a request."""

    key: ApiKey
    tenant: str
    """The queue is fair between tenants: keys, or client addresses if the server has no keys."""


class Authenticator:
    """Checks `Authorization: Bearer KEY`. A server without keys is open."""

    def __init__(
        self,
        keys: Iterable[str],
        store: KeyStore | None = None,
        limit_headers: Callable[[ApiKey], Mapping[str, str]] = lambda _: {},
    ) -> None:
        self._limit_headers = limit_headers
        self._digests = [digest_of(key) for key in keys]
        self._store = store
        self.is_open = not self._digests and store is None
        """True if requests need no key."""

    def identify(self, request: Request) -> Identity:
        """Find the key of a request and put its name into the access log.

        Raises `APIError` 401 for a missing or unknown key.
        """
        header = request.headers.get("authorization", "")
        key = ANONYMOUS if self.is_open else self._authenticate(header)
        address = request.client.host if request.client else ""
        tenant = f"client:{address}" if self.is_open else f"key:{key.name}"
        request.state.log_fields = {"key": key.name}
        if is_rate_limited(key):
            request.state.limit_headers = partial(self._limit_headers, key)
        return Identity(key, tenant)

    def _authenticate(self, header: str) -> ApiKey:
        scheme, _, secret = header.partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise _unauthorized("No API key was sent. Expected: 'Authorization: Bearer KEY'.")
        digest = digest_of(secret)
        # Compares with every key, so that the time does not reveal which key came close.
        matches = [hmac.compare_digest(digest, key_digest) for key_digest in self._digests]
        if any(matches):
            return ApiKey(name="key-" + digest.removeprefix("sha256:")[:12])
        key = self._store.find(secret) if self._store is not None else None
        if key is None:
            raise _unauthorized("This server does not know the API key.")
        return key


def is_rate_limited(key: ApiKey) -> bool:
    """Whether requests of the key must be charged to the rate limiter."""
    return bool(key.requests_per_minute or key.tokens_per_minute)


def check_model(name: str, served_names: Collection[str], identity: Identity) -> None:
    """Raise `APIError` 404 for a model that is not served, or that this key may not use."""
    key = identity.key
    if name not in served_names or (key.models and name not in key.models):
        allowed_names = [served for served in served_names if key.may_use(served)]
        name_list = ", ".join(f"'{allowed}'" for allowed in allowed_names)
        raise APIError(
            404,
            f"The model '{name[:200]}' does not exist here. Available: {name_list}.",
            param="model",
            code="model_not_found",
        )


def _unauthorized(message: str) -> APIError:
    return APIError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
