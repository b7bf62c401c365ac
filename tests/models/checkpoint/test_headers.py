"""The headers of a model, under every name that it is served by."""

from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from stonechat_models.checkpoint.headers import ModelHeaders, read_headers, safetensors_headers
from stonechat_models.checkpoint.hf_config import QUANTIZATION_FILES
from stonechat_models.checkpoint.known import aliases
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from tests.models.checkpoint.hub_cache import add_hub_model
from tests.models.tiny_adapters import write_adapter
from tests.models.tiny_gguf import write_tiny_gguf
from tests.models.tiny_models import tiny_model
from tests.models.tiny_tokenizers import byte_level_backend


def headers_of(model: str | Path, **settings: bool) -> ModelHeaders:
    return read_headers(EngineConfig(model=str(model), **settings), lambda line: None)  # type: ignore[arg-type]


def save_model(folder: Path) -> Path:
    tiny_model("qwen3").save_pretrained(folder)  # type: ignore[operator]
    byte_level_backend().save(str(folder / "tokenizer.json"))
    return folder


def check_same_model(model: str | Path) -> ModelHeaders:
    """Compare the headers with what is served under this name."""
    headers = headers_of(model)
    files = resolve_model(EngineConfig(model=str(model)), lambda line: None)
    assert (headers.name, headers.weight_format) == (files.name, files.weight_format)
    assert headers.config.raw == files.config.raw
    return headers


def test_folders_and_ids(caches: Path) -> None:
    folder = save_model(caches / "tiny")
    stored = load_file(folder / "model.safetensors")
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    add_hub_model(caches, "owner/tiny", content)
    aliases.set_alias("short", "owner/tiny")
    for model in (folder, "owner/tiny", "short"):
        headers = check_same_model(model)
        assert {t.name: t.shape for t in headers.tensors} == {
            name: tuple(tensor.shape) for name, tensor in stored.items()
        }
        assert sum(t.num_bytes for t in headers.tensors) == sum(t.nbytes for t in stored.values())


def test_the_quantisation_beside_the_config_of_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is fetched if the types of the tensors call for it."""
    fetched: list[str] = []

    def fetch(model: str, name: str, **_: object) -> str:
        fetched.append(name)
        content = {"config.json": "{}", "hf_quant_config.json": '{"quantization": {"bits": 4}}'}
        if name not in content:
            raise huggingface_hub.errors.EntryNotFoundError(name)
        (tmp_path / name).write_text(content[name])
        return str(tmp_path / name)

    def metadata(type_name: str) -> huggingface_hub.utils.SafetensorsRepoMetadata:
        tensor = huggingface_hub.utils.TensorInfo(type_name, [4, 4], (0, 16))
        file = huggingface_hub.utils.SafetensorsFileMetadata({}, {"x.weight": tensor})
        return huggingface_hub.utils.SafetensorsRepoMetadata(None, False, {}, {"a": file})

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    for type_name, quantization in (("F16", {}), ("U8", {"quant_method": "modelopt", "bits": 4})):
        found = metadata(type_name)
        monkeypatch.setattr(
            huggingface_hub, "get_safetensors_metadata", lambda *_, found=found, **__: found
        )
        headers = headers_of("owner/not-here")
        assert headers.config.raw.get("quantization_config", {}) == quantization
        assert not headers.has_modules
    always = ["config.json", "modules.json"]
    assert fetched == [*always, always[0], *QUANTIZATION_FILES, always[1]]


def test_gguf_files(caches: Path) -> None:
    path = write_tiny_gguf(caches / "tiny.gguf", "llama", "Q8_0")
    add_hub_model(caches, "owner/tiny", {"some-Q8_0.gguf": path.read_bytes()})
    for model in (path, "owner/tiny/some-Q8_0.gguf"):
        headers = check_same_model(model)
        shapes = {tensor.name: (tensor.type_name, tensor.shape) for tensor in headers.tensors}
        assert shapes["model.layers.1.mlp.down_proj.weight"] == ("Q8_0", (64, 128))
        assert shapes["model.norm.weight"] == ("F32", (64,))
    with pytest.raises(ModelLoadError, match=r"owner/tiny/other\.gguf is not on this machine"):
        headers_of("owner/tiny/other.gguf")


@pytest.mark.parametrize("layer", [1, 77])
def test_an_adapter_must_fit(caches: Path, layer: int) -> None:
    folder = save_model(caches / "tiny")
    module = tiny_model("qwen3")
    assert isinstance(module, torch.nn.Module)
    name = "model.layers.1.self_attn.o_proj"
    write_adapter(caches / "mine", module, [name])
    path = caches / "mine" / "adapter_model.safetensors"
    tensors = {key.replace(".1.", f".{layer}."): t for key, t in load_file(path).items()}
    save_file(tensors, path)
    config = EngineConfig(model=str(folder), adapter=str(caches / "mine"))
    if layer == 1:
        assert read_headers(config, lambda line: None).tensors
        tensors = {
            key: torch.zeros(t.shape[0] + ("_B" in key), t.shape[1]) for key, t in tensors.items()
        }
        save_file(tensors, path)
    message = "mine changes .*which is" if layer == 1 else r"no weights model\.layers\.77"
    with pytest.raises(ModelLoadError, match=message):
        read_headers(config, lambda line: None)


def test_pickled_weights_must_be_allowed(caches: Path) -> None:
    folder = save_model(caches / "tiny")
    expected = headers_of(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="--allow-pickle"):
        headers_of(folder)
    headers = headers_of(folder, allow_pickle=True)
    assert headers.weight_format == "pickle"
    shapes = {t.name: (t.shape, t.num_bytes) for t in headers.tensors}
    assert shapes == {t.name: (t.shape, t.num_bytes) for t in expected.tensors}


def test_absent_models_are_refused(caches: Path) -> None:
    (caches / "empty").mkdir()
    (caches / "file.txt").touch()
    for model in (caches / "empty", caches / "x.gguf", caches / "file.txt", "nobody/nothing"):
        with pytest.raises(ModelLoadError) as error:
            headers_of(model)
        with pytest.raises(ModelLoadError) as served:
            resolve_model(EngineConfig(model=str(model)), lambda line: None)
        assert str(error.value).partition(":")[0] == str(served.value).partition(":")[0]


def test_headers_equal_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16)}, path)
    headers = {t.name: (t.type_name, t.shape, t.num_bytes) for t in safetensors_headers(path)}
    assert headers == {"a": ("F32", (3, 4), 48), "b": ("BF16", (5,), 10)}


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"{}" * 50])
def test_damaged_headers_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match="not a valid safetensors file"):
        safetensors_headers(path)
