"""The ways to name a model, and the refusals with their reasons."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM

from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.checkpoint.headers import ModelHeaders, read_headers
from stonechat_models.checkpoint.hub import download as hub
from stonechat_models.checkpoint.known.default_model import NAME
from stonechat_models.checkpoint.resolve import ModelFiles, resolve_model, weights_hash
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.runtime.build import build_engine
from tests.models.checkpoint.hub_cache import add_hub_model
from tests.models.tiny_adapters import BASE, projections, write_adapter
from tests.models.tiny_gguf import write_tiny_gguf


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


def test_folders_of_the_hubs_cache_have_the_models_name(model_folder: Path, tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--owner--a--b"
    snapshot = cached / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(model_folder, snapshot)
    with pytest.raises(ModelLoadError, match="has no config"):
        resolve(cached)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    for place in (cached, snapshot):
        files = resolve(place)
        assert (files.name, files.folder) == ("owner/a--b", snapshot)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_files_that_only_point_to_the_model_say_so(file: str, model_folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (model_folder / file).write_text(pointer)
    config = EngineConfig(model=str(model_folder))
    with pytest.raises(ModelLoadError, match=rf"{file} only points to the file; `git lfs pull`"):
        build_engine(config, lambda line: None)


def test_shards_without_an_index_are_read(model_folder: Path) -> None:
    path = model_folder / "model.safetensors"
    weights = list(load_file(path).items())
    for number, part in enumerate((weights[::2], weights[1::2]), 1):
        save_file(dict(part), model_folder / f"model-0000{number}-of-00002.safetensors")
    path.unlink()
    module = load_module(
        resolve(model_folder), EngineConfig(model=""), torch.device("cpu"), torch.float32
    )
    for name, value in module.state_dict().items():
        assert torch.equal(value, dict(weights)[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_has_the_folders_weights(model_folder: Path, dtype: torch.dtype) -> None:
    files = resolve(model_folder)
    module = load_module(files, EngineConfig(model=""), torch.device("cpu"), dtype)
    expected = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32).state_dict()
    assert not module.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name].to(dtype)), name


def test_missing_weights_are_refused(model_folder: Path) -> None:
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
        model: str,
        *,
        revision: str,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        local_files_only: bool,
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
    names += ["spiece.model", "additional_chat_templates/rag.jinja"]
    names += ["onnx/model.onnx", "consolidated.safetensors", "original/x.safetensors", "a.h5"]
    names += ["onnx/config.json", "onnx/additional_chat_templates.jinja"]
    fetched = [
        {
            n
            for n in names
            if any(fnmatch(n, p) for p in allow) and not any(fnmatch(n, p) for p in ignore)
        }
        for allow, ignore in patterns
    ]
    plain = [{*names[:3], "spiece.model"}, {names[5]}]
    pickled = {"config.json", "tokenizer.json", names[3], "spiece.model"}
    assert fetched == [*plain, *plain, pickled]


def test_the_default_model(default_model_files: ModelFiles) -> None:
    assert default_model_files.name == NAME
    assert default_model_files.config.num_layers == 30
    assert resolve(NAME) == resolve("default") == default_model_files
    generation = json.loads((default_model_files.folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 0]


def test_the_weights_hash_follows_the_content(model_folder: Path) -> None:
    files = resolve(model_folder)
    before = weights_hash(files)
    assert before == weights_hash(files)
    content = bytearray(files.weights[0].read_bytes())
    content[-1] ^= 1
    files.weights[0].write_bytes(bytes(content))
    assert weights_hash(files) != before


def test_a_missing_shard_is_named(model_folder: Path) -> None:
    LlamaForCausalLM.from_pretrained(model_folder).save_pretrained(
        model_folder, max_shard_size="4KB"
    )
    (model_folder / "model.safetensors").unlink()
    shards = sorted(model_folder.glob("*.safetensors"))
    assert len(resolve(model_folder).weights) == len(shards) > 1
    shards[1].unlink()
    for read in (resolve, headers_of):
        with pytest.raises(ModelLoadError, match=f"lacks 1 of the .*{shards[1].name}"):
            read(model_folder)


def headers_of(model: str | Path) -> ModelHeaders:
    return read_headers(EngineConfig(model=str(model)), lambda line: None)


def test_gguf_files_need_no_ending(tmp_path: Path, caches: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama")
    blob = path.rename(tmp_path / "sha256-0a1b2c")
    files = resolve(blob)
    assert (files.name, files.gguf, files.weight_format) == ("sha256-0a1b2c", blob, "gguf")
    assert headers_of(blob).weight_format == "gguf"


def test_a_folder_of_gguf_files(tmp_path: Path, caches: Path, model_folder: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name in ("a-F16.gguf", "a-Q8_0.gguf", "mmproj-Q4_K_M.gguf"):
        write_tiny_gguf(folder / name, "llama").rename(model_folder / name)
        write_tiny_gguf(folder / name, "llama")
    assert resolve(folder).gguf == folder / "a-Q8_0.gguf"
    assert headers_of(folder).name == "a-Q8_0"
    assert resolve(model_folder).gguf is None


def add_gguf_repository(caches: Path, name: str, files: Sequence[str]) -> None:
    content = write_tiny_gguf(caches / "tiny.gguf", "llama").read_bytes()
    add_hub_model(caches, name, dict.fromkeys(files, content) | {"config.json": b"{}"})


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("owner/tiny-GGUF:Q8_0", "tiny-Q8_0"),
        ("hf.co/owner/tiny-GGUF:q8_0", "tiny-Q8_0"),
        ("owner/tiny-GGUF/tiny-Q8_0.gguf", "tiny-Q8_0"),
        ("https://huggingface.co/owner/tiny-GGUF/blob/main/tiny-Q8_0.gguf", "tiny-Q8_0"),
        ("https://huggingface.co/owner/tiny-GGUF/resolve/main/tiny-Q8_0.gguf", "tiny-Q8_0"),
        ("owner/tiny-GGUF", "tiny-Q4_K_M"),
        ("owner/tiny-GGUF:latest", "tiny-Q4_K_M"),
        ("https://huggingface.co/owner/tiny-GGUF", "tiny-Q4_K_M"),
    ],
)
def test_gguf_files_of_the_hub(caches: Path, model: str, expected: str) -> None:
    names = ["tiny-IQ2_M.gguf", "tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf", "mmproj-Q8_0.gguf"]
    add_gguf_repository(caches, "owner/tiny-GGUF", names)
    lines: list[str] = []
    files = resolve_model(EngineConfig(model=model), lines.append)
    assert files.name == expected
    assert files.gguf is not None
    assert files.gguf.name == f"{expected}.gguf"
    is_chosen = not model.endswith(".gguf")
    assert (f"owner/tiny-GGUF: serving {expected}.gguf" in lines) == is_chosen
    assert headers_of(model).name == expected


def test_all_parts_of_a_split_file_of_the_hub(caches: Path) -> None:
    parts = [f"tiny-Q8_0-0000{i}-of-00002.gguf" for i in (1, 2)]
    write_tiny_gguf(caches / "tiny-Q8_0.gguf", "llama", part_size=12)
    add_hub_model(caches, "owner/split", {part: (caches / part).read_bytes() for part in parts})
    for model in ("owner/split", "owner/split:Q8_0", f"owner/split/{parts[1]}"):
        assert [path.name for path in resolve(model).weights] == parts


def test_a_quantisation_that_is_not_there_is_refused_with_those_that_are(caches: Path) -> None:
    add_gguf_repository(caches, "owner/tiny-GGUF", ["a-Q8_0.gguf", "a-F16.gguf", "mmproj.gguf"])
    message = r"no GGUF file of Q5_0 .*; it has a-F16\.gguf, a-Q8_0\.gguf$"
    for read in (resolve, headers_of):
        with pytest.raises(ModelLoadError, match=message):
            read("owner/tiny-GGUF:Q5_0")
    add_hub_model(caches, "owner/plain", {"config.json": b"{}"})
    with pytest.raises(ModelLoadError, match="owner/plain has no GGUF files"):
        resolve("owner/plain:Q8_0")


def test_what_the_hub_lists_counts_before_what_is_cached(
    caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_gguf_repository(caches, "owner/tiny-GGUF", ["a-Q8_0.gguf"])
    asked: list[tuple[str, str | None]] = []

    def list_files(self: object, repository: str, *, revision: str | None) -> list[str]:
        asked.append((repository, revision))
        return ["README.md", "a-Q8_0.gguf", "b/a-Q4_K_M.gguf"]

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", list_files)
    for model in ("owner/tiny-GGUF", "https://hf.co/owner/tiny-GGUF/tree/main/b"):
        for read in (resolve, headers_of):
            with pytest.raises(ModelLoadError, match=r"b/a-Q4_K_M\.gguf is not on this machine"):
                read(model)
    assert set(asked) == {("owner/tiny-GGUF", None), ("owner/tiny-GGUF", "main")}
    assert resolve("owner/tiny-GGUF:Q8_0").name == "a-Q8_0"


@pytest.mark.parametrize("model", ["qwen3:8b", "owner/name/x.bin", "./a/b", "a b"])
def test_a_text_that_names_nothing_is_explained(model: str) -> None:
    for read in (resolve, headers_of):
        with pytest.raises(ModelLoadError, match="owner/name, owner/name:Q4_K_M or owner/name/"):
            read(model)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 300, "owner/" + "x" * 300])
def test_a_path_that_cannot_be_looked_up_is_refused(name: str, model_folder: Path) -> None:
    for read in (resolve, headers_of):
        with pytest.raises(ModelLoadError, match=name):
            read(name)
    with pytest.raises(ModelLoadError, match=name):
        resolve(model_folder, adapter=name)


def test_an_adapter_is_part_of_the_weights_hash(model_folder: Path, tmp_path: Path) -> None:
    module = LlamaForCausalLM.from_pretrained(model_folder)
    hashes = {weights_hash(resolve(model_folder))}
    for alpha in (6, 7):
        folder = tmp_path / "mine"
        write_adapter(folder, module, projections(), lora_alpha=alpha)
        files = resolve(model_folder, adapter=str(folder))
        assert files.adapter is not None
        assert files.adapter.name == "mine"
        hashes.add(weights_hash(files))
    assert len(hashes) == 3


def test_adapters_of_the_hub_and_their_folders(model_folder: Path, caches: Path) -> None:
    module = LlamaForCausalLM.from_pretrained(model_folder)
    write_adapter(caches / "mine", module, projections())
    content = {path.name: path.read_bytes() for path in (caches / "mine").iterdir()}
    add_hub_model(caches, "owner/adapter", content)
    files = resolve(model_folder, adapter="owner/adapter")
    assert files.adapter is not None
    assert files.adapter.name == "owner/adapter"
    for model in ("owner/adapter", caches / "mine"):
        for read in (resolve, headers_of):
            with pytest.raises(ModelLoadError, match=f"stonechat serve {BASE} --adapter "):
                read(model)
    with pytest.raises(ModelLoadError, match="nobody/nothing"):
        resolve(model_folder, adapter="nobody/nothing")


def test_an_adapter_beside_a_model_is_noted(model_folder: Path) -> None:
    assert resolve(model_folder).notes == ()
    write_adapter(model_folder, LlamaForCausalLM.from_pretrained(model_folder), projections())
    files = resolve(model_folder)
    assert [path.name for path in files.weights] == ["model.safetensors"]
    (note,) = files.notes
    assert f"--adapter {model_folder}" in note
    assert resolve(model_folder, adapter=str(model_folder)).notes == ()


def test_a_chat_template_of_the_adapter_is_noted(model_folder: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "mine", LlamaForCausalLM.from_pretrained(model_folder), projections())
    template = tmp_path / "mine" / "chat_template.jinja"
    template.write_text("{{ messages }}")
    (note,) = resolve(model_folder, adapter=str(tmp_path / "mine")).notes
    assert f"--chat-template {template}" in note
    (model_folder / "chat_template.jinja").write_text("{{ messages }}")
    assert resolve(model_folder, adapter=str(tmp_path / "mine")).notes == ()
