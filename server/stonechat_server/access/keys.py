"""API keys: their records with limits, and a store that reads a TOML file again when it changes.

The file holds only SHA-256 digests. A key has 256 random bits, so nobody can find it from its
digest by guessing. Looking up a key by its digest reveals nothing about the other keys.
"""

import hashlib
import logging
import re
import secrets
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
KEY_PREFIX = "sk-stonechat-"
CHECK_INTERVAL_SECONDS = 1.0
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")

logger = logging.getLogger("stonechat.keys")


class KeysFileError(Exception):
    """The keys file cannot be read or is invalid. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One API key and its limits. `None` means no limit."""

    name: str
    digest: str = ""
    models: tuple[str, ...] = ()
    """Model names that the key may use. Empty means all."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    """How many requests of the key may run at once. Others wait in the queue."""
    priority: int = 0
    """The lowest goes first. Keys of equal priority share fairly."""
    created: str = ""
    revoked: bool = False

    def may_use(self, model: str) -> bool:
        """Whether the key may use the model of that name."""
        return not self.models or model in self.models


ANONYMOUS = ApiKey(name="anonymous")
"""Stands for every client of a server without keys."""


def new_secret() -> str:
    """A new random key. It is shown to its owner once and stored nowhere."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    """The digest of a key, as the keys file stores it."""
    return "sha256:" + hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def parse_keys(text: str) -> tuple[ApiKey, ...]:
    """The records in the text of a keys file. Raises `KeysFileError`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise KeysFileError(f"the keys file is not valid TOML: {error}") from error
    unknown = set(document) - {"keys"}
    tables = document.get("keys", [])
    if unknown or not isinstance(tables, list):
        raise KeysFileError("the keys file may only hold [[keys]] tables")
    keys = tuple(_parse_key(number, table) for number, table in enumerate(tables, start=1))
    for field in ("name", "digest"):
        values = [getattr(key, field) for key in keys if not key.revoked]
        if len(set(values)) < len(values):
            raise KeysFileError(f"two keys of the keys file have the same {field}")
    return keys


def _parse_key(number: int, table: object) -> ApiKey:
    where = f"key {number} of the keys file"
    if not isinstance(table, dict):
        raise KeysFileError(f"{where} is not a table")
    unknown = set(table) - set(ApiKey.__dataclass_fields__)
    if unknown:
        raise KeysFileError(f"{where} has an unknown field: {sorted(unknown)[0]}")
    name = _read_field(table, "name", str, where)
    digest = _read_field(table, "digest", str, where)
    if name is None or not NAME_PATTERN.fullmatch(name):
        raise KeysFileError(f"{where} needs a name of letters, digits and ._@- (at most 64)")
    if digest is None or not _DIGEST_PATTERN.fullmatch(digest):
        raise KeysFileError(f"{where} needs a digest, sha256: and 64 hexadecimal digits")
    models = _read_field(table, "models", list, where) or []
    if not all(isinstance(model, str) for model in models):
        raise KeysFileError(f"{where}: models must be a list of strings")
    return ApiKey(
        name=name,
        digest=digest,
        models=tuple(models),
        requests_per_minute=_read_limit(table, "requests_per_minute", where),
        tokens_per_minute=_read_limit(table, "tokens_per_minute", where),
        max_concurrency=_read_limit(table, "max_concurrency", where),
        priority=_read_field(table, "priority", int, where) or 0,
        created=_read_field(table, "created", str, where) or "",
        revoked=_read_field(table, "revoked", bool, where) or False,
    )


def _read_field(table: Mapping[str, object], field: str, kind: type[T], where: str) -> T | None:
    value = table.get(field)
    if value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise KeysFileError(f"{where}: {field} must be of type {kind.__name__}")
    return value


def _read_limit(table: Mapping[str, object], field: str, where: str) -> int | None:
    value = _read_field(table, field, int, where)
    if value is not None and value < 1:
        raise KeysFileError(f"{where}: {field} must be at least 1")
    return value


class KeyStore:
    """The keys of a file by digest. A changed file is read again within a second.

    If the file becomes unreadable or invalid, the last good keys stay in force and the error is
    logged.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._signature = self._read_signature()
        self._keys = self._read()
        self._next_check = clock() + CHECK_INTERVAL_SECONDS

    def find(self, secret: str) -> ApiKey | None:
        """The key with this secret, or None if it is unknown or revoked."""
        self._refresh()
        return self._keys.get(digest_of(secret))

    def __len__(self) -> int:
        return len(self._keys)

    def _refresh(self) -> None:
        now = self._clock()
        if now < self._next_check:
            return
        self._next_check = now + CHECK_INTERVAL_SECONDS
        signature = self._read_signature()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._keys = self._read()
        except KeysFileError as error:
            logger.error("the last good keys stay in force: %s", error)
        else:
            logger.info("read %d keys from %s", len(self._keys), self.path)

    def _read(self) -> dict[str, ApiKey]:
        return {key.digest: key for key in read_keys(self.path) if not key.revoked}

    def _read_signature(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_size, status.st_ino)


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """All records of a keys file, also the revoked ones. Raises `KeysFileError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KeysFileError(f"cannot read the keys file {path}: {error}") from error
    return parse_keys(text)
