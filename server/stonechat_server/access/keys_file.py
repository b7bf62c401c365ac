"""Edits the keys file and keeps its comments and layout.

An edit replaces the file atomically. Edits at the same time wait for each other.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import AoT

from stonechat_server.access.keys import (
    ApiKey,
    KeysFileError,
    KeyStore,
    digest_of,
    new_secret,
    parse_keys,
    read_keys,
)
from stonechat_server.terminal.suggest import did_you_mean

OFF = "off"
"""In place of a keys file: there is none, even if the default one is there."""


def default_keys_file() -> Path:
    """The keys file if none is named: in the user's configuration folder. It may not exist."""
    from platformdirs import user_config_path

    return user_config_path("stonechat", appauthor=False) / "keys.toml"


def open_key_store(named: Path | None) -> KeyStore | None:
    """Open the keys file of a server: the one that is named, or the default one.

    The default file may appear later. None if `named` is `off`. Raises `KeysFileError`.
    """
    if named is not None:
        return None if str(named) == OFF else KeyStore(named.expanduser())
    try:
        return KeyStore(default_keys_file(), may_be_absent=True)
    except KeysFileError as error:
        raise KeysFileError(f"{error} (--keys-file off: start without it)") from error


def add_key(path: Path, name: str, **fields: Any) -> str:
    """Append a key to the file and return its secret, which is stored nowhere.

    `fields` are further ones of `ApiKey`. The file does not say what a key has by itself. Creates a
    missing file. Raises `KeysFileError` for an invalid field, or for a name that a live key has.
    """
    secret = new_secret()
    table = tomlkit.table()
    table["name"] = name
    table["digest"] = digest_of(secret)
    table["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    plain = ApiKey(name=name)
    table.update({k: value for k, value in fields.items() if value != getattr(plain, k)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as file:
        document = _read_document(file)
        if any(one["name"] == name and not one.get("revoked") for one in document.get("keys", ())):
            raise KeysFileError(
                f"{path} has a live key named {name}; choose another name, or first "
                f"`stonechat keys --keys-file {path} revoke {name}`"
            )
        keys = document.setdefault("keys", tomlkit.aot())
        keys.append(table)
        _write(file, document)
    return secret


def revoke_key(path: Path, name: str) -> ApiKey:
    """Revoke the live key of that name and return it. Raises `KeysFileError` if there is none."""
    read_keys(path)  # a folder without the file may not even be there to hold the lock
    with _locked(path) as file:
        live = {key.name: key for key in read_keys(file) if not key.revoked}
        if name not in live:
            hint = did_you_mean(name, live)
            raise KeysFileError(f"there is no live key named {name} in {path}{hint}")
        document = _read_document(file)
        keys = document["keys"]
        assert isinstance(keys, AoT)
        for table in keys:
            if table["name"] == name and not table.get("revoked", False):
                table["revoked"] = True
        _write(file, document)
    return live[name]


@contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """Wait until no other edit of the file runs. Yields the file that `path` is, or links to."""
    from filelock import FileLock

    file = Path(os.path.realpath(path))
    lock_file = file.with_name(file.name + ".lock")
    with FileLock(lock_file):
        try:
            yield file
        finally:
            with suppress(OSError):  # Windows keeps a file that another process waits for
                lock_file.unlink()


def _read_document(path: Path) -> tomlkit.TOMLDocument:
    if not path.exists():
        return tomlkit.document()
    read_keys(path)
    return tomlkit.parse(path.read_text(encoding="utf-8"))


def _write(path: Path, document: tomlkit.TOMLDocument) -> None:
    """Replace the file with an atomic rename, so that a server never reads half a file."""
    text = tomlkit.dumps(document)
    parse_keys(text, path=path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, path.stat().st_mode & 0o777)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
