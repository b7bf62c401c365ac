"""The ways to name a model, and the refusals with their reasons."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM

from stonechat_models.backends.transformers.load import load_module
from stonechat_models.checkpoint import hub
from stonechat_models.checkpoint.default_model import NAME
from stonechat_models.checkpoint.resolve import (
    ModelFiles,
    resolve_model,
    tokenizer_folder,
    weights_hash,
)
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(folder / "tokenizer.json"))
    return folder


def resolve(model: str | Path, **settings: object) -> ModelFiles:
    return resolve_model(EngineConfig(model=str(model), **settings), lambda line: None)  # type: ignore[arg-type]


def test_a_folder_is_served_as_it_is(model_folder: Path) -> None:
    files = resolve(model_folder)
    assert files.name == "tiny-llama"
    assert files.folder == model_folder
    assert files.gguf is None
    assert [path.name for path in files.weights] == ["model.safetensors"]
    assert files.config.model_type == "llama"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_has_the_folders_weights(model_folder: Path, dtype: torch.dtype) -> None:
    files = resolve(model_folder)
    module = load_module(files, EngineConfig(model=""), torch.device("cpu"), dtype)
    expected = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32).state_dict()
    assert not module.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name].to(dtype)), name


def test_missing_weights_are_refused(model_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = model_folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    files = resolve(model_folder)
    with pytest.raises(ModelLoadError, match=r"missing keys.*up_proj"):
        load_module(files, EngineConfig(model=""), torch.device("cpu"), torch.float32)


def test_pickled_weights_must_be_allowed(model_folder: Path) -> None:
    weights = LlamaForCausalLM.from_pretrained(model_folder).state_dict()
    (model_folder / "model.safetensors").unlink()
    torch.save(weights, model_folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="pickled"):
        resolve(model_folder)
    files = resolve(model_folder, allow_pickle=True)
    assert [path.name for path in files.weights] == ["pytorch_model.bin"]
    config = EngineConfig(model="", allow_pickle=True)
    module = load_module(files, config, torch.device("cpu"), torch.float32)
    assert torch.equal(module.state_dict()["lm_head.weight"], weights["lm_head.weight"])


def test_broken_folders_are_refused(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        resolve(tmp_path / "empty")
    (model_folder / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadError, match="tokenizer"):
        resolve(model_folder)
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="no safetensors"):
        resolve(model_folder)
    (model_folder / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="cannot read"):
        resolve(model_folder)


def test_names_without_a_model_are_refused(tmp_path: Path) -> None:
    for model in ("no/such-model", "not a name", tmp_path / "x.gguf", "a/b/c.gguf"):
        with pytest.raises(ModelLoadError):
            resolve(model)
    (tmp_path / "file.txt").touch()
    with pytest.raises(ModelLoadError, match="neither"):
        resolve(tmp_path / "file.txt")


def test_a_cached_hub_model_is_served_offline(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots").mkdir()
    model_folder.rename(repository / "snapshots" / "abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    files = resolve("someone/tiny")
    assert files.name == "someone/tiny"
    assert files.config.vocab_size == 40


def test_only_needed_files_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fnmatch import fnmatch

    patterns: list[tuple[list[str], list[str]]] = []

    def snapshot(
        model: str, *, revision: str, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        patterns.append((allow_patterns, ignore_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    hub.fetch_snapshot("a/b", None, False, lambda line: None)
    hub.fetch_snapshot("a/b", None, True, lambda line: None)
    names = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "tokenizer.json",
        "pytorch_model.bin",
    ]
    names += ["onnx/model.onnx", "consolidated.safetensors", "original/x.safetensors", "a.h5"]
    fetched = [
        {
            n
            for n in names
            if any(fnmatch(n, p) for p in allow) and not any(fnmatch(n, p) for p in ignore)
        }
        for allow, ignore in patterns
    ]
    assert fetched == [set(names[:3]), set(names[:3]), {"config.json", "tokenizer.json", names[3]}]


def test_the_default_model(default_model_files: ModelFiles) -> None:
    assert default_model_files.name == NAME
    assert default_model_files.config.num_layers == 30
    assert resolve(NAME) == resolve("default") == default_model_files
    generation = json.loads((default_model_files.folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2]


def test_the_weights_hash_follows_the_content(model_folder: Path) -> None:
    files = resolve(model_folder)
    before = weights_hash(files)
    assert before == weights_hash(files)
    content = bytearray(files.weights[0].read_bytes())
    content[-1] ^= 1
    files.weights[0].write_bytes(bytes(content))
    assert weights_hash(files) != before


def test_a_converted_tokenizer_belongs_to_its_folder_and_content(
    model_folder: Path, tmp_path: Path
) -> None:
    source = model_folder / "tokenizer.model"
    source.write_bytes(bytes(6 << 20))
    (model_folder / "tokenizer_config.json").write_text('{"chat_template": "a"}')
    keys = [tokenizer_folder(model_folder)]
    with source.open("r+b") as file:
        file.seek(source.stat().st_size * 2 // 3)
        file.write(b"x")
    keys.append(tokenizer_folder(model_folder))
    (model_folder / "tokenizer_config.json").write_text('{"chat_template": "b"}')
    keys.append(tokenizer_folder(model_folder))
    assert tokenizer_folder(model_folder) == keys[-1]
    keys.append(tokenizer_folder(model_folder.rename(tmp_path / "copy")))
    assert None not in keys
    assert len(set(keys)) == 4
