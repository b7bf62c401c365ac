"""Files of each architecture, written as llama.cpp does, give the logits of the original model."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.checkpoint.gguf.config import ARCHITECTURES, config_of
from stonechat_models.checkpoint.gguf.names import module_name, place_of, weights_of
from stonechat_models.checkpoint.gguf.reader import GgufFile, GgufTensor, read_gguf
from stonechat_models.checkpoint.gguf.rope import CONFIG_TENSORS
from stonechat_models.checkpoint.headers import read_headers
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from tests.models.checkpoint.gguf.converted_models import MODELS, converted_model
from tests.models.converted_encoders import ENCODERS
from tests.models.converted_gguf import write_converted
from tests.models.tiny_gguf import HEAD_DIMS
from tests.nightly import nightly

CPU = torch.device("cpu")
IDS = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(1))
MOSTLY_RENAMED = (
    *("olmo2", "mistral3", "qwen3vl", "qwen3vlmoe", "ernie4_5", "seed_oss", "exaone4-full"),
    *("hunyuan-dense", "granitemoeshared", "granitehybrid-dense", "glm4-flash", "lfm2", "arcee"),
    *("olmoe", "dots1", "nemotron_h", "mamba2", "granitemoe", "deepseek2", "hunyuan-moe"),
    *("internlm2", "command-r-plus", "jais2", "phi2", "starcoder", "falcon-11b", "stablelm"),
    *("exaone", "laguna-m", "glm4moe", "qwen35", "qwen3next"),
)
"""Models whose files need nothing that another one's, or another test's, do not need too."""
OTHERS = [name for name in MODELS if name not in MOSTLY_RENAMED]


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def silent(line: str) -> None:
    assert line


def load(path: Path) -> Any:
    config = EngineConfig(model=str(path))
    files = resolve_model(config, silent)
    return load_module(files, config, CPU, torch.float32, attn_implementation="eager")


def logits(module: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = module(IDS, use_cache=False).logits
    return result


def rewrite(path: Path, change: dict[str, Any], tensors: dict[str, np.ndarray | None]) -> None:
    """Write a file again with other metadata and tensors; None removes a tensor."""
    reader, target = gguf.GGUFReader(path), path.with_suffix(".new")
    architecture = read_gguf(path).architecture
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name not in change and not field.name.startswith(("GGUF.", "general.arch")):
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    for key, value in change.items():
        writer.add_uint32(key, value)
    for tensor in reader.tensors:
        if tensor.name not in tensors:
            shape = tuple(int(n) for n in tensor.shape[::-1])
            writer.add_tensor(tensor.name, tensor.data.reshape(shape), raw_dtype=tensor.tensor_type)
    for name, values in tensors.items():
        if values is not None:
            writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target.replace(path)


def converted(name: str, folder: Path) -> tuple[Any, Path]:
    module = converted_model(name)
    return module, write_converted(module, MODELS[name][0], folder / f"{name}.gguf")


@pytest.mark.parametrize("name", [*OTHERS, *nightly(*MOSTLY_RENAMED)])
def test_logits_are_those_of_the_original_model(name: str, tmp_path: Path) -> None:
    module, path = converted(name, tmp_path)
    expected = logits(module)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits(load(path)), expected, rtol=1e-4, atol=1e-4)


def test_every_architecture_is_tested() -> None:
    models = [*MODELS.values(), *ENCODERS.values()]  # the latter in test_encoders
    assert {architecture for architecture, _, _ in models} | set(HEAD_DIMS) | {
        "qwen2vl"  # the same entry as qwen2
    } == set(ARCHITECTURES)


@pytest.mark.parametrize(
    "name", ["gpt-oss", "deepseek3", "granitehybrid", "qwen35moe", "stablelm-12b"]
)
def test_headers_have_the_elements_of_the_model(name: str, tmp_path: Path) -> None:
    module, path = converted(name, tmp_path)
    headers = read_headers(EngineConfig(model=str(path)), silent)
    names = [tensor.name for tensor in headers.tensors]
    assert len(set(names)) == len(names)
    stored = sum(value.numel() for value in module.state_dict().values())
    assert sum(tensor.num_elements for tensor in headers.tensors) == stored


@pytest.mark.parametrize("kind", ["MXFP4", "Q8_0"])
def test_merged_experts_keep_the_values_of_their_blocks(kind: str, tmp_path: Path) -> None:
    module = converted_model("gpt-oss")
    quantised = gguf.GGMLQuantizationType[kind]
    path = write_converted(module, "gpt-oss", tmp_path / "x.gguf", quantised)
    file = read_gguf(path)
    experts = load(path).model.layers[1].mlp.experts
    for i, name in enumerate(("gate", "up")):
        tensor = file.tensors[f"blk.1.ffn_{name}_exps.weight"]
        assert tensor.type_name == kind
        values = gguf.dequantize(tensor.data, quantised).reshape(tensor.shape)
        actual = experts.gate_up_proj[..., i::2].transpose(-1, -2)
        assert torch.equal(actual, torch.from_numpy(np.ascontiguousarray(values)))


@pytest.mark.parametrize("name", ["glm4moe", "qwen35"])
def test_layers_that_predict_further_tokens_are_left_out(name: str, tmp_path: Path) -> None:
    module, path = converted(name, tmp_path)
    rewrite(
        path,
        {f"{name}.block_count": 5, f"{name}.nextn_predict_layers": 1},
        {"blk.4.nextn.eh_proj.weight": np.ones((4, 4)), "blk.4.attn_norm.weight": np.ones(64)},
    )
    torch.testing.assert_close(logits(load(path)), logits(module), rtol=1e-4, atol=1e-4)
    assert all(not t.name.startswith("blk.4.") for t in weights_of(read_gguf(path)))
    rewrite(path, {f"{name}.nextn_predict_layers": 5}, {})
    with pytest.raises(UnsupportedModelError, match="nextn_predict_layers is 5 of 5 layers"):
        load(path)


def test_older_files_of_deepseek_store_keys_and_values_together(tmp_path: Path) -> None:
    module, path = converted("deepseek2", tmp_path)
    state, tensors = module.state_dict(), dict[str, np.ndarray | None]()
    for i in range(4):
        tensors |= {f"blk.{i}.attn_{part}_b.weight": None for part in "kv"}
        name = f"model.layers.{i}.self_attn.kv_b_proj.weight"
        tensors[f"blk.{i}.attn_kv_b.weight"] = state[name].numpy()
    keys = {"head_count_kv": 4, "key_length": 24, "value_length": 24}
    rewrite(path, {f"deepseek2.attention.{key}": value for key, value in keys.items()}, tensors)
    file = read_gguf(path)
    for key in ("key_length_mla", "value_length_mla"):
        file.metadata.pop(f"deepseek2.attention.{key}")
    newer = config_of(read_gguf(path))
    assert config_of(file) == newer
    torch.testing.assert_close(logits(load(path)), logits(module), rtol=1e-4, atol=1e-4)


def test_older_files_of_qwen3next_store_their_projection_whole(tmp_path: Path) -> None:
    module, path = converted("qwen3next", tmp_path)
    state, tensors = module.state_dict(), dict[str, np.ndarray | None]()
    for i in (0, 1, 3):
        tensors |= {f"blk.{i}.attn_{part}.weight": None for part in ("qkv", "gate")}
        name = f"model.layers.{i}.linear_attn.in_proj_qkvz.weight"
        tensors[f"blk.{i}.ssm_in.weight"] = state[name].numpy()
    rewrite(path, {}, tensors)
    torch.testing.assert_close(logits(load(path)), logits(module), rtol=1e-4, atol=1e-4)


def test_a_parameter_without_one_of_its_parts_is_refused(tmp_path: Path) -> None:
    _, path = converted("gpt-oss", tmp_path)
    rewrite(path, {}, {"blk.2.ffn_up_exps.weight": None})
    with pytest.raises(ModelLoadError, match=r"gpt-oss\.gguf has no tensor blk\.2\.ffn_up_exps"):
        load(path)


@pytest.mark.parametrize("name", ["deepseek3", "qwen35", "granitemoe"])
def test_tensors_of_another_shape_are_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    _, path = converted(name, tmp_path)
    damaged: dict[str, dict[str, np.ndarray | None]] = {
        "deepseek3": {"blk.0.attn_v_b.weight": np.ones((5, 7, 9))},
        "qwen35": {"blk.0.attn_qkv.weight": np.ones((100, 64))},
        "granitemoe": {"blk.1.ffn_up_exps.weight": np.ones((64, 96))},
    }
    rewrite(path, {}, damaged[name])
    with pytest.raises(ModelLoadError, match=rf"{name}\.gguf: it is not a valid gguf file"):
        load(path)


def test_a_decay_of_a_state_must_be_negative(tmp_path: Path) -> None:
    _, path = converted("qwen35", tmp_path)
    rewrite(path, {}, {"blk.0.ssm_a": np.array([-1.0, -1, -1, 0, -1, -1])})
    with pytest.raises(ModelLoadError, match="a decay of a state is not below 0"):
        load(path)


def test_falcon_h1_norms_have_no_suffix(tmp_path: Path) -> None:
    """The converter's map of names leaves it out."""
    _, path = converted("falcon-h1", tmp_path)
    file = read_gguf(path)
    assert "blk.0.ffn_norm" in file.tensors
    assert place_of(file, "blk.0.ffn_norm").target == "model.layers.0.pre_ff_layernorm.weight"


def test_parts_and_experts_have_names_of_their_own() -> None:
    file = GgufFile(Path("x.gguf"), {"general.architecture": "gpt-oss"}, {})
    base = "model.layers.3.mlp.experts."
    names = {
        "blk.3.ffn_up_exps.bias": f"{base}up_proj.bias",
        "blk.3.ffn_down_exps.weight": f"{base}down_proj.weight",
    }
    for name, expected in names.items():
        assert module_name(file, name) == expected


def test_rope_tensors_and_their_content_are_part_of_the_key(tmp_path: Path) -> None:
    """The config is read from them."""
    _, path = converted("phi3-longrope", tmp_path)
    before = resolve_model(EngineConfig(model=str(path)), silent).folder
    config = json.loads((before / "config.json").read_text())["rope_parameters"]
    factors = [1.25, 2.0, 3.0, 4.0, 6.0, 8.0]
    assert config["long_factor"] == [1.5, *factors[1:]]
    data = read_gguf(path).tensors[CONFIG_TENSORS[1]]
    content = path.read_bytes()
    place = content.index(np.array([1.5, *factors[1:]], np.float32).tobytes())
    assert isinstance(data, GgufTensor)
    path.write_bytes(content[:place] + np.float32(1.25).tobytes() + content[place + 4 :])
    after = resolve_model(EngineConfig(model=str(path)), silent).folder
    assert (
        json.loads((after / "config.json").read_text())["rope_parameters"]["long_factor"] == factors
    )
