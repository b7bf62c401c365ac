"""Edits the keys file and keeps its comments and layout. An edit replaces the file atomically."""

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import tomlkit
from tomlkit.items import AoT

from stonechat_server.access.keys import (
    ApiKey,
    KeysFileError,
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


def chosen_keys_file(named: Path | None) -> Path | None:
    """The keys file of a server: the one that is named, or the default one if it is there.

    None, if there is none or `named` is `off`.
    """
    if named is not None:
        return None if str(named) == OFF else named.expanduser()
    default = default_keys_file()
    return default if default.is_file() else None


def add_key(
    path: Path,
    name: str,
    *,
    models: tuple[str, ...] = (),
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    max_concurrency: int | None = None,
    priority: int = 0,
) -> str:
    """Append a key to the file and return its secret, which is stored nowhere.

    Creates a missing file. Raises `KeysFileError` for an invalid field, or for a name that a live
    key already has.
    """
    secret = new_secret()
    table = tomlkit.table()
    table["name"] = name
    table["digest"] = digest_of(secret)
    table["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    optional = {
        "models": list(models),
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_concurrency": max_concurrency,
        "priority": priority,
    }
    for field, value in optional.items():
        if value not in (None, []) and (field, value) != ("priority", 0):
            table[field] = value
    document = _read_document(path)
    keys = document.setdefault("keys", tomlkit.aot())
    keys.append(table)
    _write(path, document)
    return secret


def revoke_key(path: Path, name: str) -> ApiKey:
    """Revoke the live key of that name and return it. Raises `KeysFileError` if there is none."""
    live = {key.name: key for key in read_keys(path) if not key.revoked}
    if name not in live:
        hint = did_you_mean(name, live)
        raise KeysFileError(f"there is no live key named {name} in {path}{hint}")
    document = _read_document(path)
    keys = document["keys"]
    assert isinstance(keys, AoT)
    for table in keys:
        if table["name"] == name and not table.get("revoked", False):
            table["revoked"] = True
    _write(path, document)
    return live[name]


def _read_document(path: Path) -> tomlkit.TOMLDocument:
    if not path.exists():
        return tomlkit.document()
    read_keys(path)
    return tomlkit.parse(path.read_text(encoding="utf-8"))


def _write(path: Path, document: tomlkit.TOMLDocument) -> None:
    """Replace the file with an atomic rename, so that a server never reads half a file."""
    text = tomlkit.dumps(document)
    parse_keys(text)
    path.parent.mkdir(parents=True, exist_ok=True)
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
