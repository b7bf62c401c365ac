"""API keys: their records with limits, and a store that reads a TOML file again when it changes.

The file holds only SHA-256 digests. A key has 256 random bits, so nobody can find it from its
digest by guessing. Looking up a key by its digest reveals nothing about the other keys.
"""

import hashlib
import logging
import os
import re
import secrets
import shlex
import stat
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from stonechat_server.options import UserError

KEY_PREFIX = "sk-stonechat-"
CHECK_INTERVAL_SECONDS = 1.0
MAX_FILE = 1 << 24
"""Bytes of a keys file: more than 50,000 keys."""
BATCH_PRIORITY = 1 << 40
"""Is added to the priority of a key for its batches. Whatever has this priority or more is of a
batch: it goes behind all other requests."""

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")]
Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
Limit = Annotated[int, Meta(ge=1)]
COUNT = "a whole number of at least 1"
FIELD_TEXTS = {
    "name": "1 to 64 letters, digits and ._@-, beginning with a letter or digit",
    "digest": "sha256: and 64 hexadecimal digits",
    "models": "a list of strings",
    "requests_per_minute": COUNT,
    "tokens_per_minute": COUNT,
    "max_concurrency": COUNT,
    "priority": "a whole number",
    "created": "a string",
    "revoked": "true or false",
    "manages_models": "true or false",
}
"""What each field must be, in error messages."""

logger = logging.getLogger("stonechat.keys")


class KeysFileError(UserError):
    """The keys file cannot be read or is invalid. The message says why."""


class ApiKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One API key and its limits. `None` means no limit."""

    name: Name
    digest: Digest = ""
    models: tuple[str, ...] = ()
    """Model names that the key may use. Empty means all."""
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_concurrency: Limit | None = None
    """How many requests of the key may run at once. Others wait in the queue."""
    priority: int = 0
    """The lowest goes first. Keys of equal priority share fairly."""
    created: str = ""
    revoked: bool = False
    manages_models: bool = False
    """Whether the key may load and unload models."""

    def for_batches(self) -> "ApiKey":
        """The key as its batches have it. Its limits count apart from those of other requests."""
        return msgspec.structs.replace(self, priority=self.priority + BATCH_PRIORITY)

    def may_use(self, model: str) -> bool:
        """Whether the key may use the model of that name."""
        return not self.models or model in self.models


class _StoredKey(ApiKey, frozen=True, kw_only=True):
    """A key of the keys file. It must have a digest."""

    digest: Digest


class KeysFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a keys file. `keys` is None in a file without content."""

    keys: tuple[_StoredKey, ...] | None = None


ANONYMOUS = ApiKey(name="anonymous", manages_models=True)
"""Stands for every client of a server without keys."""


def new_secret() -> str:
    """A new random key. It is shown to its owner once and stored nowhere."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    """The digest of a key, as the keys file stores it. Any string has one."""
    return "sha256:" + hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def parse_keys(
    text: str, *, path: Path | None = None, may_be_empty: bool = True
) -> tuple[ApiKey, ...]:
    """The records in the text of a keys file. Raises `KeysFileError`, which names `path`."""
    file = "the keys file" if path is None else f"the keys file {path}"
    try:
        keys = msgspec.convert(tomllib.loads(text), KeysFile, strict=True).keys
    except tomllib.TOMLDecodeError as error:
        raise KeysFileError(f"{file} is not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise KeysFileError(_explain(str(error), file)) from error
    if keys is None:
        if not may_be_empty:
            raise KeysFileError(f"{file} is empty; 'keys = []' means that there are no keys")
        return ()
    for field in ("name", "digest"):
        values = [getattr(key, field) for key in keys if not key.revoked]
        if len(set(values)) < len(values):
            raise KeysFileError(f"two keys of {file} have the same {field}")
    return keys


def _explain(error: str, file: str) -> str:
    """Say in plain words what msgspec says, such as "Expected `int` >= 1 - at `$.keys[0].x`"."""
    problem, _, path = error.replace("`", "").rpartition(" - at ")
    match = re.match(r"\$\.keys\[(\d+)\]\.?(\w*)", path)
    if match is None:
        return f"{file} may only hold [[keys]] tables"
    where, field = f"key {int(match[1]) + 1} of {file}", match[2]
    if field:
        return f"{where}: {field} must be {FIELD_TEXTS[field]}"
    if problem.startswith("Expected"):
        return f"{where} is not a table"
    return f"{where}: {problem.removeprefix('Object ')}"  # an unknown or a missing field


class KeyStore:
    """The keys of a file by digest. A changed file is read again within a second.

    If the file becomes unreadable, invalid or empty, the last good keys stay in force and the error
    is logged: an empty file may be one that is being written. `keys = []` withdraws all keys.

    With `may_be_absent` the file may appear later. Once it has been there, in whatever state, the
    store asks for keys for good. Otherwise a missing file raises `KeysFileError`.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        *,
        may_be_absent: bool = False,
    ) -> None:
        self.path = path
        self._clock = clock
        self._asks = not may_be_absent or is_there(path)
        self._signature = self._read_signature()
        self._keys = self._read() if self._asks else {}
        self._next_check = clock() + CHECK_INTERVAL_SECONDS

    @property
    def asks(self) -> bool:
        """Whether requests need a key: the file is there, or it was."""
        self._refresh()
        return self._asks

    def find(self, secret: str) -> ApiKey | None:
        """The key with this secret, or None if it is unknown or revoked."""
        self._refresh()
        return self._keys.get(digest_of(secret))

    def named(self, name: str) -> ApiKey | None:
        """The live key of that name."""
        self._refresh()
        return next((key for key in self._keys.values() if key.name == name), None)

    def __len__(self) -> int:
        return len(self._keys)

    def _refresh(self) -> None:
        now = self._clock()
        if now < self._next_check:
            return
        self._next_check = now + CHECK_INTERVAL_SECONDS
        has_appeared = not self._asks and is_there(self.path)
        if has_appeared:
            self._asks = True
        signature = self._read_signature()
        if not self._asks or (signature == self._signature and not has_appeared):
            return
        self._signature = signature
        try:
            self._keys = self._read(may_be_empty=not self._keys)
        except KeysFileError as error:
            kept = (
                "the last good keys stay in force"
                if self._keys
                else "no key of the file is accepted"
            )
            logger.error("%s: %s", kept, error)
        else:
            logger.info("read %d keys from %s", len(self._keys), self.path)

    def _read(self, *, may_be_empty: bool = True) -> dict[str, ApiKey]:
        keys = read_keys(self.path, may_be_empty=may_be_empty)
        return {key.digest: key for key in keys if not key.revoked}

    def _read_signature(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_size, status.st_ino)


def is_there(path: Path) -> bool:
    """Whether something has that name, also if it cannot be read. True if nobody can tell."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def read_keys(path: Path, *, may_be_empty: bool = True) -> tuple[ApiKey, ...]:
    """All records of a keys file, also the revoked ones. Raises `KeysFileError`."""
    try:
        text = _read_file(path).decode()
    except FileNotFoundError as error:
        if path.is_symlink():
            target = os.readlink(path)
            raise KeysFileError(
                f"the keys file {path} is a link to {target}, which is not there"
            ) from error
        command = f"stonechat keys --keys-file {shlex.quote(str(path))} add NAME"
        raise KeysFileError(f"there is no keys file {path}; `{command}` creates one") from error
    except OSError as error:
        reason = error.strerror or error
        raise KeysFileError(f"cannot read the keys file {path}: {reason}") from error
    except UnicodeDecodeError as error:
        raise KeysFileError(f"the keys file {path} is not a text file in UTF-8") from error
    return parse_keys(text, path=path, may_be_empty=may_be_empty)


def _read_file(path: Path) -> bytes:
    """Read a regular file. Others, and some files of the kernel, would be waited for.

    Raises `OSError`, also for one of more than `MAX_FILE` bytes.
    """

    def open_at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", buffering=0, opener=open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is not a regular file")
        content = b""
        while piece := os.read(file.fileno(), MAX_FILE):
            content += piece
            if len(content) > MAX_FILE:
                raise OSError("it is too large")
        return content
