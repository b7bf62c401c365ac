"""Which models a server has, from the command line and the tables `[models.NAME]` of its file."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from stonechat_server.catalog.entry import Entry
from stonechat_server.options import UserError
from stonechat_server.settings import MODEL_SETTINGS, Settings
from stonechat_server.terminal.explain import explain
from stonechat_server.terminal.flags import Flag
from stonechat_server.terminal.suggest import did_you_mean

OF_ONE_MODEL = ("served_model_name", "revision", "mmproj", "adapter", "lora", "draft_model")
"""Settings that cannot be those of several models. Each belongs into the model's own table."""


def model_entries(settings: Settings, more_models: Sequence[str]) -> list[Entry]:
    """The models of the command line, then those of the file. The first is the default.

    The settings of each are those of the server, with its own. Raises `UserError` for models that
    cannot be served together.
    """
    words = [settings.model, *more_models] if "model" in settings.model_fields_set else []
    for name in OF_ONE_MODEL:
        if getattr(settings, name):
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{flag} is for one model, and there may be several: put "
                f"{'aliases' if name == 'served_model_name' else name} into a table [models.NAME]"
            )
    named = [word for word in words if word in settings.models]
    others = [name for name in settings.models if name not in named]
    entries = [
        _of_table(settings, word, settings.models[word], position == 0)
        if word in settings.models
        else _of_word(settings, word, position == 0)
        for position, word in enumerate(words)
    ]
    entries += [_of_table(settings, name, settings.models[name], False) for name in others]
    _check_names(entries)
    if any(entry.settings.tensor_parallel > 1 for entry in entries):
        raise UserError(
            "--tensor-parallel is for a server of one model: the memory of several models is "
            "planned on one device each"
        )
    return entries


def _of_word(settings: Settings, word: str, is_first: bool) -> Entry:
    name = word
    if word.endswith(".gguf") or word.startswith((".", "/", "~")):  # a file or a folder
        name = PurePath(word).name.removesuffix(".gguf")
    return Entry(names=(name,), settings=_with(settings, {"model": word}, is_first))


def _of_table(settings: Settings, name: str, table: Mapping[str, Any], is_first: bool) -> Entry:
    values = {"model": name, **table}
    aliases = values.pop("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise UserError(f"[models.{name}]: aliases must be a list of texts")
    for key in values:
        if key not in MODEL_SETTINGS:
            known = [*MODEL_SETTINGS, "aliases"]
            is_shared = key in Settings.model_fields
            reason = "is a setting of the whole server" if is_shared else "is no setting of a model"
            hint = "" if is_shared else did_you_mean(key, known)
            raise UserError(f"[models.{name}]: {key} {reason}{hint}")
    try:
        return Entry(names=(name, *aliases), settings=_with(settings, values, is_first))
    except ValidationError as error:
        flags = [Flag(key, field, True) for key, field in Settings.model_fields.items()]
        first = error.errors()[0]
        message = explain({**first, "loc": ()}, flags, {})
        raise UserError(f"[models.{name}]: {first['loc'][0]}: {message}") from error


def _with(settings: Settings, values: Mapping[str, Any], is_first: bool) -> Settings:
    """The settings of one model. Raises `ValidationError`."""
    shared = {key: getattr(settings, key) for key in Settings.model_fields}
    own = {"models": {}, "engine_process": True, **values}
    if is_first:
        own["load_at_start"] = True
    return Settings(**{**shared, **own})


def _check_names(entries: Sequence[Entry]) -> None:
    owners: dict[str, str] = {}
    for entry in entries:
        adapters = [text.partition("=")[0].strip() for text in entry.settings.lora]
        for name in set(adapters).intersection(entry.names):
            raise UserError(
                f"[models.{entry.name}]: {name} names the model and an adapter: give the adapter "
                "another name in lora"
            )
        for name in dict.fromkeys((*entry.names, *adapters)):
            if name in owners:
                raise UserError(
                    f"two models are called {name}: give each a table [models.NAME] of its own"
                )
            owners[name] = entry.name
