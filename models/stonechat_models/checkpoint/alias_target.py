"""Makes an alias of a model that exists."""

from pathlib import Path

from stonechat_models.checkpoint.hub import download as hub
from stonechat_models.checkpoint.hub.names import parse_hub_name
from stonechat_models.checkpoint.known.aliases import resolve_alias, set_alias
from stonechat_models.checkpoint.known.store import list_models
from stonechat_models.checkpoint.known.suggestions import did_you_mean
from stonechat_models.checkpoint.resolve import DEFAULT_NAMES
from stonechat_models.errors import ModelLoadError


def alias_model(name: str, model: str) -> str:
    """Make `name` an alias of `model`. Return what it stands for.

    Files and folders are stored with their whole path, and another alias as its model. Raises
    `ModelLoadError` for a name that `set_alias` refuses, and for a model that is neither on this
    machine nor on the Hugging Face hub.
    """
    target = _target(resolve_alias(model))
    set_alias(name, target)
    return target


def _target(model: str) -> str:
    if model in DEFAULT_NAMES:
        return "default"
    path = Path(model).expanduser()
    if path.is_file() or (path / "config.json").is_file() or any(path.glob("*.gguf")):
        return str(path.absolute())
    name = parse_hub_name(model)
    if name is None or path.exists():
        raise ModelLoadError(f"there is no model {model}{did_you_mean(model)}")
    if name.repository in (stored.name for stored in list_models()):
        return model
    files = hub.list_files(name.repository, name.revision)
    if name.file is not None and name.file not in files:
        raise ModelLoadError(f"{name.repository} has no file {name.file} on the Hugging Face hub")
    return model
