"""Short names that a user gives to models, kept in a file of theirs."""

import json
import re
from pathlib import Path

from stonechat_models.checkpoint import default_model
from stonechat_models.errors import ModelLoadError

ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def alias_file() -> Path:
    """Where this user's aliases are kept; it may not exist."""
    from platformdirs import user_config_path

    return user_config_path("stonechat", appauthor=False) / "aliases.json"


def read_aliases() -> dict[str, str]:
    """Names and the models they stand for. Raises `ModelLoadError` for a damaged file."""
    path = alias_file()
    try:
        aliases = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {path}: {error}") from error
    if not isinstance(aliases, dict) or not all(isinstance(v, str) for v in aliases.values()):
        raise ModelLoadError(f"{path} is no JSON object of names and models")
    return aliases


def set_alias(name: str, model: str | None) -> None:
    """Let `name` stand for `model`; None: forget it.

    Raises `ModelLoadError` for a name that could be a path or an id, or one to forget that is not
    there.
    """
    aliases = read_aliases()
    if model is None:
        if name not in aliases:
            raise ModelLoadError(f"there is no alias {name}")
        del aliases[name]
    else:
        if ALIAS.fullmatch(name) is None or name in ("default", default_model.NAME):
            raise ModelLoadError(f"{name!r} cannot be an alias: letters, digits, . _ and - only")
        aliases[name] = model
    path = alias_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(aliases, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def resolve_alias(name: str) -> str:
    """The model that `name` stands for, or `name` itself. A file or folder of that name wins."""
    if ALIAS.fullmatch(name) is None or Path(name).exists():
        return name
    return read_aliases().get(name, name)
