"""Finds the API key that a request carries, and checks which models the key may use."""

import hmac
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from starlette.datastructures import Headers
from starlette.requests import Request

from stonechat_server.access.keys import ANONYMOUS, ApiKey, KeyStore, digest_of
from stonechat_server.errors import APIError

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
"""Addresses that only this machine reaches."""
LATEST = ":latest"
"""What Ollama's clients add to a name without a colon."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sent a request."""

    key: ApiKey
    tenant: str
    """The queue is fair between tenants: keys, or client addresses if the server has no keys."""


class Authenticator:
    """Checks `Authorization: Bearer KEY` or `X-Api-Key: KEY`. A server without keys is open."""

    def __init__(
        self,
        keys: Iterable[str],
        store: KeyStore | None = None,
        limit_headers: Callable[[ApiKey], Mapping[str, str]] = lambda _: {},
    ) -> None:
        self._limit_headers = limit_headers
        self._digests = [digest_of(key) for key in keys]
        self._store = store

    @property
    def is_open(self) -> bool:
        """True if requests need no key. It stays false once it is."""
        return not self._digests and (self._store is None or not self._store.asks)

    def identify(self, request: Request) -> Identity:
        """Find the key of a request and put its name into the access log.

        Raises `APIError` 401 for a missing or unknown key, and for two different keys.
        """
        is_open = self.is_open
        key = ANONYMOUS if is_open else self._authenticate(_sent_key(request.headers))
        address = request.client.host if request.client else ""
        tenant = f"client:{address}" if is_open else f"key:{key.name}"
        request.state.log_fields = {"key": key.name}
        if is_rate_limited(key):
            request.state.limit_headers = partial(self._limit_headers, key)
        return Identity(key, tenant)

    def for_batches(self, name: str) -> Identity | None:
        """Who runs the batches of the key of that name; None if there is no such key now."""
        key: ApiKey | None = None
        if self.is_open:
            key = ANONYMOUS if name == ANONYMOUS.name else None
        elif name in map(_name_of, self._digests):
            key = ApiKey(name=name)
        elif self._store is not None:
            key = self._store.named(name)
        return None if key is None else Identity(key.for_batches(), f"batches:{name}")

    def _authenticate(self, header: str) -> ApiKey:
        for secret in _readings(header):
            digest = digest_of(secret)
            # Compares with every key, so that the time does not reveal which key came close.
            matches = [hmac.compare_digest(digest, key_digest) for key_digest in self._digests]
            if any(matches):
                return ApiKey(name=_name_of(digest), manages_models=True)
            key = self._store.find(secret) if self._store is not None else None
            if key is not None:
                return key
        raise _unauthorized("This server does not know the API key.")


def _name_of(digest: str) -> str:
    """The name of a key that has no name of its own."""
    return "key-" + digest.removeprefix("sha256:")[:12]


def _sent_key(headers: Headers) -> str:
    """The one key in the headers. Another scheme than `Bearer` may be for a proxy on the way."""
    bearers = [value.partition(" ") for value in headers.getlist("authorization")]
    sent = [key for scheme, _, key in bearers if scheme.lower() == "bearer"]
    keys = {key.strip() for key in sent + headers.getlist("x-api-key")} - {""}
    if not keys:
        raise _unauthorized(
            "No API key was sent. Expected: 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'."
        )
    if len(keys) > 1:
        raise _unauthorized("The request has different API keys; send one.")
    return keys.pop()


def _readings(header: str) -> list[str]:
    """The texts that a header may stand for: clients write Latin-1, as it was read, or UTF-8."""
    try:
        as_utf8 = header.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return [header]
    return [header] if as_utf8 == header else [as_utf8, header]


def is_rate_limited(key: ApiKey) -> bool:
    """Whether requests of the key must be charged to the rate limiter."""
    return bool(key.requests_per_minute or key.tokens_per_minute)


def check_model(name: str | None, served_names: Collection[str], identity: Identity) -> str:
    """Return the name of the model that a request gets. None: the first that its key may use.

    A name may end with `:latest`, which Ollama's clients add.
    Raises `APIError` 404 for a model that is not served, or that this key may not use.
    """
    key = identity.key
    if name is not None and name in served_names and (not key.models or name in key.models):
        return name
    allowed_names = [served for served in served_names if key.may_use(served)]
    if name is not None and name.endswith(LATEST):
        short_name = name.removesuffix(LATEST)
        if name not in served_names and short_name in allowed_names:
            return short_name
    if name is None and allowed_names:
        return allowed_names[0]
    name_list = ", ".join(f"'{allowed}'" for allowed in allowed_names)
    reason = f"The model '{name[:200]}' does not exist here." if name is not None else ""
    available = (
        f"Available: {name_list}." if name_list else "This key may use no model of this server."
    )
    raise APIError(404, f"{reason} {available}".strip(), param="model", code="model_not_found")


def check_manages(identity: Identity) -> None:
    """Raise `APIError` 403 unless the key may load and unload models."""
    if not identity.key.manages_models:
        raise APIError(
            403,
            "This key may not load and unload models (`stonechat keys add NAME --manages-models` "
            "makes one that may).",
            code="permission_denied",
        )


def _unauthorized(message: str) -> APIError:
    return APIError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def access_warnings(host: str, needs_key: bool) -> list[str]:
    """What an operator should know of who may use a server that listens on `host`."""
    if needs_key or host in LOOPBACK:
        return []
    return [
        f"the server listens on {host or 'all addresses'} without an API key: all who can "
        "reach this machine can use it (--api-key KEY or `stonechat keys add NAME` asks for a key)"
    ]
