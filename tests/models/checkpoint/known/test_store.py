"""The models on this machine, in caches that a test fills."""

import json
import shutil
from pathlib import Path

import pytest

from stonechat_models.checkpoint.known import default_model, store
from stonechat_models.checkpoint.resolve import ModelFiles, fetch_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from tests.models.checkpoint.hub_cache import add_hub_model
from tests.models.tiny_gguf import write_tiny_gguf
from tests.models.tiny_models import tiny_model


def test_empty_caches_have_no_models(caches: Path) -> None:
    assert store.list_models() == []
    for name in ("a/b", "default"):
        with pytest.raises(ModelLoadError, match="not on this machine"):
            store.remove_model(name)


def test_hub_models_are_listed_and_removed(caches: Path) -> None:
    add_hub_model(caches, "owner/one", {"config.json": b"{}", "w.safetensors": b"x" * 1000})
    add_hub_model(caches, "owner/two", {"config.json": b"{}"})
    sizes = {model.name: model.num_bytes for model in store.list_models()}
    assert sizes == {"owner/one": 1002, "owner/two": 2}
    assert store.remove_model("owner/one") == 1002
    assert [model.name for model in store.list_models()] == ["owner/two"]


def test_the_default_model_is_removed_with_its_conversion(
    caches: Path, default_model_files: ModelFiles
) -> None:
    assert default_model_files.gguf is not None
    folder = caches / "cache" / "stonechat" / "default-model" / default_model.GGUF_SHA256[:16]
    folder.mkdir(parents=True)
    shutil.copy(default_model_files.gguf, folder)
    conversion = fetch_model(EngineConfig(model="default"), lambda line: None)
    assert conversion.is_relative_to(caches)
    (model,) = store.list_models()
    assert model.name == default_model.NAME
    assert model.num_bytes > default_model_files.gguf.stat().st_size
    assert store.remove_model("default") == model.num_bytes
    assert not conversion.exists()
    assert store.list_models() == []


def test_a_split_file_is_removed_with_its_conversion(caches: Path) -> None:
    names = [f"tiny-0000{i}-of-00002.gguf" for i in (1, 2)]
    write_tiny_gguf(caches / "tiny.gguf", "llama", part_size=12)
    parts = {name: (caches / name).read_bytes() for name in names}
    add_hub_model(caches, "owner/split", parts)
    stored_bytes = sum(map(len, parts.values()))
    assert [model.num_bytes for model in store.list_models()] == [stored_bytes]
    config = EngineConfig(model=f"owner/split/{names[0]}")
    conversion = fetch_model(config, lambda line: None)
    dequantised = conversion.with_name(conversion.name + "-float32")
    shutil.copytree(conversion, dequantised)
    (model,) = store.list_models()
    converted_bytes = sum(path.stat().st_size for path in conversion.iterdir())
    assert model.num_bytes == stored_bytes + 2 * converted_bytes
    assert store.remove_model("owner/split") == model.num_bytes
    assert not conversion.exists()
    assert not dequantised.exists()


def test_a_converted_tokenizer_is_removed_with_its_model(caches: Path) -> None:
    folder = caches / "gpt2"
    tiny_model("qwen2").save_pretrained(folder)  # type: ignore[operator]
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    add_hub_model(caches, "owner/tiny", content)
    tokenizer = fetch_model(EngineConfig(model="owner/tiny"), lambda line: None)
    assert tokenizer.is_relative_to(caches / "cache")
    (model,) = store.list_models()
    assert model.num_bytes > sum(map(len, content.values()))
    store.remove_model("owner/tiny")
    assert not tokenizer.exists()
