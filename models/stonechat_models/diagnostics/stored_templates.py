"""Reads the chat templates of the models on this machine, without loading the models."""

from contextlib import suppress

from stonechat_models.checkpoint.store import StoredModel, list_models, model_folders
from stonechat_models.errors import ModelLoadError
from stonechat_models.text.tokenizer_config import read_tokenizer_files


def stored_chat_templates() -> dict[str, str]:
    """Return the usual chat template of each model by its name.

    Models without a template are left out, and those whose files cannot be read. A GGUF file counts
    once it has been converted, which its first run does.
    """
    found = {model.name: _template(model) for model in list_models()}
    return {name: template for name, template in found.items() if template is not None}


def _template(model: StoredModel) -> str | None:
    for folder in model_folders(model):
        with suppress(ModelLoadError):
            template = read_tokenizer_files(folder).chat_templates.get("default")
            if template is not None:
                return template
    return None
