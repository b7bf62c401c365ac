"""Finds the model on this machine whose name is most like a misspelt one."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from stonechat_models.checkpoint.known import default_model
from stonechat_models.checkpoint.known.aliases import read_aliases
from stonechat_models.checkpoint.known.spelling import nearest
from stonechat_models.checkpoint.known.store import list_models
from stonechat_models.errors import ModelLoadError


def did_you_mean(name: str) -> str:
    """Return the end of a sentence: which model `name` may mean, or how to see those there are."""
    found = nearest(name, dict(_spellings(name)))
    return f"; did you mean {found}?" if found else "; `stonechat models` lists those that are here"


def _spellings(name: str) -> Iterator[tuple[str, str]]:
    """Yield each spelling of a model that is on this machine, with the model's name.

    The owner in a name of the hub may be left out. Files and folders count where `name` points.
    """
    with suppress(OSError, ModelLoadError):
        for path in sorted(Path(name).expanduser().parent.iterdir()):
            if path.suffix == ".gguf" or (path / "config.json").is_file():
                shown = name.removesuffix(Path(name).name) + path.name
                yield shown, shown
    with suppress(OSError, ModelLoadError):
        for model in list_models():
            yield model.name.rpartition("/")[2], model.name
            yield model.name, model.name
    with suppress(OSError, ModelLoadError):
        for alias in read_aliases():
            yield alias, alias
    yield default_model.NAME, default_model.NAME
