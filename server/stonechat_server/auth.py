"""API keys: which of them a request carries, compared in constant time."""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.requests import Request

from stonechat_server.errors import APIError


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. `key_id` tells keys apart without telling the key; empty: the server is open."""

    key_id: str = ""


ANONYMOUS = Identity()


class Authenticator:
    """Checks `Authorization: Bearer KEY`. Without any key the server is open."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @property
    def is_open(self) -> bool:
        """True when no key is needed."""
        return not self._digests

    def identify(self, request: Request) -> Identity:
        """Raises `APIError` 401 for a missing or unknown key."""
        if self.is_open:
            return ANONYMOUS
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise _unauthorized("No API key was sent. Expected: 'Authorization: Bearer KEY'.")
        digest = _digest(key)
        # Every known key is compared, so that the time taken does not tell which one came close.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise _unauthorized("The API key is not known here.")
        return Identity(key_id=digest.hex()[:12])


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _unauthorized(message: str) -> APIError:
    return APIError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
