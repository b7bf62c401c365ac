"""Finds the LoRA adapters that the settings name: one to merge, and those to compute beside."""

from pathlib import Path

from stonechat_models.checkpoint.adapter.files import Adapter, read_adapter
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.hub import download as hub
from stonechat_models.checkpoint.hub.names import parse_hub_name
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.model_file import reading


def locate_adapter(config: EngineConfig, progress: Progress) -> Adapter | None:
    """Read the adapter to merge: a folder, or a repository of the hub. None: no adapter.

    Raises `ModelLoadError` when it does not exist or cannot be merged.
    """
    if config.adapter is None:
        return None
    return _read(config.adapter, None, progress)


def locate_adapters(config: EngineConfig, progress: Progress) -> tuple[Adapter, ...]:
    """Read the adapters to compute beside the model, under the names that `config.lora` gives them.

    Raises `ModelLoadError` when one does not exist or cannot be computed, and for a name that is
    missing or given twice.
    """
    adapters: dict[str, Adapter] = {}
    for text in config.lora:
        name, _, source = (part.strip() for part in text.partition("="))
        if not name or not source:
            raise ModelLoadError(
                f"--lora {text} is not NAME=DIR: the name that requests give as `model`, and the "
                "adapter's folder or its name on the hub"
            )
        if name in adapters:
            raise ModelLoadError(f"two adapters have the name {name} (--lora); give each its own")
        adapters[name] = _read(source, name, progress)
    return tuple(adapters.values())


def _read(source: str, name: str | None, progress: Progress) -> Adapter:
    with reading(source):
        folder = Path(source).expanduser()
        is_folder = folder.is_dir()
    if is_folder:
        return read_adapter(folder, name or folder.resolve().name)
    if parse_hub_name(source) is None:
        raise ModelLoadError(
            f"there is no folder {source} with an adapter, and it is not a name of the Hugging "
            "Face hub, which is owner/name"
        )
    return read_adapter(hub.fetch_snapshot(source, None, False, progress), name or source)
