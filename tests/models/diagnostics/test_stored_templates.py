"""The chat templates of the models in caches that a test fills."""

import json
from pathlib import Path

from stonechat_models.diagnostics.stored_templates import stored_chat_templates
from tests.models.checkpoint.conftest import caches as caches
from tests.models.checkpoint.hub_cache import add_hub_model


def test_templates_are_read_without_the_models(caches: Path) -> None:
    config = json.dumps({"chat_template": "{{ old }}"}).encode()
    add_hub_model(caches, "owner/one", {"tokenizer_config.json": config})
    files = {"tokenizer_config.json": config, "chat_template.jinja": b"{{ new }}"}
    add_hub_model(caches, "owner/two", files)
    add_hub_model(caches, "owner/none", {"config.json": b"{}"})
    add_hub_model(caches, "owner/broken", {"tokenizer_config.json": b"{"})
    assert stored_chat_templates() == {"owner/one": "{{ old }}", "owner/two": "{{ new }}"}
