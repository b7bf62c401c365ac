"""Reads the chat templates of the models on this machine, without loading the models."""

from contextlib import suppress
from pathlib import Path

from stonechat_models.checkpoint.known.store import StoredModel, list_models, model_folders
from stonechat_models.errors import ModelLoadError
from stonechat_models.model_file import read_json
from stonechat_models.text.tokenizer_config import read_tokenizer_files

CHAT_SUFFIXES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


def stored_chat_templates() -> dict[str, str | None]:
    """Return the usual chat template of each model by its name. None: the model has none.

    Models whose files cannot be read are left out, and those that do not complete text. A GGUF file
    counts once it has been converted, which its first run does.
    """
    return {
        model.name: templates[0]
        for model in list_models()
        if (templates := sorted(_templates(model), key=lambda text: text is None))
    }


def _templates(model: StoredModel) -> list[str | None]:
    """Return the template of each folder that has one, and None for those of a whole model."""
    templates: list[str | None] = []
    for folder in model_folders(model):
        with suppress(ModelLoadError):
            template = read_tokenizer_files(folder).chat_templates.get("default")
            if template is not None or _completes_text(folder):
                templates.append(template)
    return templates


def _completes_text(folder: Path) -> bool:
    """Whether a folder has the configuration and the tokenizer of a model that completes text."""
    architectures = (read_json(folder / "config.json") or {}).get("architectures") or []
    has_tokenizer = any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json"))
    return has_tokenizer and any(str(a).endswith(CHAT_SUFFIXES) for a in architectures)
