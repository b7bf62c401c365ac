"""API keys: which of them a request carries, and which models it may use."""

import hashlib
import hmac
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request

from stonechat_server.access.keys import ANONYMOUS, ApiKey, KeyStore
from stonechat_server.errors import APIError


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sent a request."""

    key: ApiKey
    tenant: str
    """Fairness is kept between tenants: the key, or the client's address where there is no key."""


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
        """Find the key, and name it in the request's access line.

        Raises `APIError` 401 for a missing or unknown key.
        """
        header = request.headers.get("authorization", "")
        key = ANONYMOUS if self.is_open else self._authenticate(header)
        address = request.client.host if request.client else ""
        tenant = f"client:{address}" if self.is_open else f"key:{key.name}"
        request.state.log_fields = {"key": key.name}
        request.state.limit_headers = partial(self._limit_headers, key)
        return Identity(key, tenant)

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


def check_model(name: str, served_names: Collection[str], identity: Identity) -> None:
    """Raises `APIError` 404 for a model that is not served, or not to this key."""
    names = [served for served in served_names if identity.key.may_use(served)]
    if name not in names:
        served = ", ".join(f"'{served}'" for served in names)
        raise APIError(
            404,
            f"The model '{name[:200]}' does not exist here. Served: {served}.",
            param="model",
            code="model_not_found",
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _unauthorized(message: str) -> APIError:
    return APIError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
