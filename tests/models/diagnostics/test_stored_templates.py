"""The chat templates of the models in caches that a test fills."""

import json
from pathlib import Path

from stonechat_models.checkpoint.resolve import fetch_model
from stonechat_models.config import EngineConfig
from stonechat_models.diagnostics.stored_templates import stored_chat_templates
from tests.models.checkpoint.conftest import caches as caches
from tests.models.checkpoint.hub_cache import add_hub_model
from tests.models.tiny_gguf import TEMPLATE, write_tiny_gguf

CAUSAL = json.dumps({"architectures": ["LlamaForCausalLM"]}).encode()


def test_templates_are_read_without_the_models(caches: Path) -> None:
    config = json.dumps({"chat_template": "{{ old }}"}).encode()
    add_hub_model(caches, "owner/one", {"tokenizer_config.json": config, "config.json": CAUSAL})
    files = {"tokenizer_config.json": config, "chat_template.jinja": b"{{ new }}"}
    add_hub_model(caches, "owner/two", files)
    add_hub_model(caches, "owner/none", {"config.json": b"{}"})
    add_hub_model(caches, "owner/broken", {"tokenizer_config.json": b"{"})
    assert stored_chat_templates() == {"owner/one": "{{ old }}", "owner/two": "{{ new }}"}


def test_models_without_a_template_are_told_from_others(caches: Path) -> None:
    add_hub_model(caches, "owner/base", {"tokenizer.json": b"{}", "config.json": CAUSAL})
    encoder = json.dumps({"architectures": ["BertModel"]}).encode()
    add_hub_model(caches, "owner/encoder", {"tokenizer.json": b"{}", "config.json": encoder})
    add_hub_model(caches, "owner/weights-only", {"config.json": CAUSAL})
    assert stored_chat_templates() == {"owner/base": None}


def test_a_gguf_file_counts_once_it_is_converted(caches: Path) -> None:
    content = write_tiny_gguf(caches / "tiny.gguf", "llama").read_bytes()
    add_hub_model(caches, "owner/tiny-GGUF", {"tiny-Q8_0.gguf": content})
    assert stored_chat_templates() == {}
    fetch_model(EngineConfig(model="owner/tiny-GGUF"), lambda line: None)
    assert stored_chat_templates() == {"owner/tiny-GGUF": TEMPLATE}
