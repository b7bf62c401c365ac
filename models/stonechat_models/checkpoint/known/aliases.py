"""The user's short names for models (aliases), kept in a file in the configuration folder."""

import json
import re
from pathlib import Path

from stonechat_models.checkpoint.known import default_model
from stonechat_models.checkpoint.known.spelling import did_you_mean
from stonechat_models.errors import ModelLoadError

ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def alias_file() -> Path:
    """Return the path of the user's alias file. The file may not exist."""
    from platformdirs import user_config_path

    return user_config_path("stonechat", appauthor=False) / "aliases.json"


def read_aliases() -> dict[str, str]:
    """Return the model of each alias. Raises `ModelLoadError` for a file that cannot be read."""
    path = alias_file()
    try:
        aliases = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {path} (correct or delete it): {error}") from error
    if not isinstance(aliases, dict) or not all(isinstance(v, str) for v in aliases.values()):
        raise ModelLoadError(
            f"{path} is not a JSON object of names and models; correct or delete it"
        )
    return aliases


def set_alias(name: str, model: str | None) -> None:
    """Make `name` an alias of `model`. If `model` is None, remove the alias.

    Raises `ModelLoadError` for a name that could be a path, an id such as `owner/name` or the
    default model, and when the alias to remove does not exist.
    """
    aliases = read_aliases()
    if model is None:
        if name not in aliases:
            hint = did_you_mean(
                name, aliases, f"`stonechat models alias {name} MODEL` gives a model this name"
            )
            raise ModelLoadError(f"there is no alias {name}{hint}")
        del aliases[name]
    else:
        if ALIAS.fullmatch(name) is None or name in ("default", default_model.NAME):
            raise ModelLoadError(
                f"{name!r} cannot be an alias: use letters, digits, '.', '_' and '-', begin with a "
                "letter or digit, and do not use a name of the default model"
            )
        aliases[name] = model
    path = alias_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(aliases, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def resolve_alias(name: str) -> str:
    """Return the model that `name` is an alias of, or else `name` itself.

    If a file or folder has this name, the alias does not count.
    """
    if ALIAS.fullmatch(name) is None or Path(name).exists():
        return name
    return read_aliases().get(name, name)
