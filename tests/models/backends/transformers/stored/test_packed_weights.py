"""Packed weights become the floats that they stand for, on the PyTorch path."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from stonechat_models.backends.transformers.loading.load import load_settings
from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.diagnostics.memory_plan import survey_model
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from tests.models.checkpoint.packed.test_recognise import packing_of
from tests.models.packed_writers import (
    CASES,
    compressed,
    is_linear_or_expert,
    mlx,
    order_like_mlx,
    pack_quantized,
    quantise_config,
    save_packed,
    stack_experts,
)
from tests.models.tiny_models import save_tiny_model
from tests.models.tiny_tokenizers import byte_level_backend

CPU = torch.device("cpu")
IDS = torch.arange(40)[None]


def load(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    config = EngineConfig(model=str(folder), device="cpu", threads=1)
    files = resolve_model(config, lambda line: None)
    return load_module(files, config, CPU, dtype, attn_implementation="eager")


def logits(module: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = module(IDS, use_cache=False).logits
    return output


@pytest.mark.parametrize("name", CASES)
def test_weights_are_the_floats(name: str, tmp_path: Path) -> None:
    """The headers tell what the data tell, and the data become the floats."""
    writer, quantization, type_name = CASES[name]
    floats = save_packed(tmp_path, "llama", writer, quantization, num_hidden_layers=1)
    by_headers, by_data = packing_of(tmp_path), packing_of(tmp_path, reads=True)
    assert by_headers.consumed == by_data.consumed
    assert by_headers.tensors.keys() == {n for n in floats if n.endswith("_proj.weight")}
    for key, tensor in by_headers.tensors.items():
        assert tensor.type_name == by_data.tensors[key].type_name == type_name
        assert tensor.num_elements == floats[key].numel()
        assert tensor.is_flat or tensor.shape == tuple(floats[key].shape)
    module = load(tmp_path)
    assert not hasattr(module.config, "quantization_config")
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(parameter, floats[key], rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "phi3"])
@pytest.mark.parametrize("name", ["gptq-asym", "fp8-block"])
def test_logits_are_those_of_the_floats(name: str, family: str, tmp_path: Path) -> None:
    """transformers merges the experts of these files after they were read."""
    writer, quantization, _ = CASES[name]
    save_packed(tmp_path, family, writer, quantization, is_linear_or_expert)
    module = load(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "float", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(module), logits(reference), rtol=1e-4, atol=1e-4)


def test_stacked_experts_of_mlx_are_those_of_the_floats(tmp_path: Path) -> None:
    """A layer with an entry of its own has other bits."""
    router = "model.layers.0.mlp.gate"
    save_packed(
        tmp_path,
        "qwen3_moe",
        lambda weight: mlx(8 if len(weight) == 10 else 4)(weight),
        {"group_size": 32, "bits": 4, "mode": "affine", router: {"group_size": 32, "bits": 8}},
        lambda name: is_linear_or_expert(name) or name == f"{router}.weight",
    )
    stack_experts(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "float", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(load(tmp_path)), logits(reference), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3_5_text", "lfm2"])
def test_models_of_mlx_with_convolutions_are_those_of_the_floats(
    family: str, tmp_path: Path
) -> None:
    floats = save_packed(tmp_path, family, *CASES["mlx-4"][:2], num_hidden_layers=4)
    order_like_mlx(tmp_path)
    for key, parameter in load(tmp_path).named_parameters():
        torch.testing.assert_close(parameter, floats[key], rtol=2e-6, atol=2e-7)


def test_names_of_mlx_for_models_that_see_are_refused(tmp_path: Path) -> None:
    save_packed(tmp_path, "llama", *CASES["mlx-4"][:2])
    path = tmp_path / "model.safetensors"
    save_file({f"language_model.{name}": t for name, t in load_file(path).items()}, path)
    with pytest.raises(UnsupportedModelError, match="the MLX format of models that see") as error:
        load(tmp_path)
    config = EngineConfig(model=str(tmp_path), device="cpu", backend="transformers")
    assert survey_model(config, lambda line: None).refusal == str(error.value)


def test_weights_are_rounded_to_the_dtype(tmp_path: Path) -> None:
    writer, quantization, _ = CASES["fp8-block"]
    floats = save_packed(tmp_path, "llama", writer, quantization)
    for name, parameter in load(tmp_path, torch.bfloat16).named_parameters():
        assert torch.equal(parameter, floats[name].to(torch.bfloat16))


def test_rows_may_end_within_a_word(tmp_path: Path) -> None:
    config = compressed("pack-quantized", num_bits=4, group_size=20)
    floats = save_packed(
        tmp_path, "llama", pack_quantized(4, 20), config, is_down, intermediate_size=100
    )
    parameters = dict(load(tmp_path).named_parameters())
    for name in filter(is_down, floats):
        assert torch.equal(parameters[name], floats[name])


def is_down(name: str) -> bool:
    return name.endswith("down_proj.weight")


def test_code_in_the_folder_is_not_run_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_packed(tmp_path, "llama", *CASES["fp8-block"][:2])
    allowed = []

    def record(folder: Path, **options: object) -> PretrainedConfig:
        allowed.append(options.pop("trust_remote_code"))
        config: PretrainedConfig = from_pretrained(folder, **options)
        return config

    from_pretrained = AutoConfig.from_pretrained
    monkeypatch.setattr(AutoConfig, "from_pretrained", record)
    load(tmp_path)
    assert allowed == [False]


def test_fp8_experts_in_one_tensor(tmp_path: Path) -> None:
    """Their scales have the weight's name and an ending, and cover blocks of each expert."""
    folder = save_tiny_model(tmp_path / "tiny", "gpt_oss", _tokenizer(tmp_path))
    path = folder / "model.safetensors"
    stored = load_file(path)
    floats = {}
    for name in [n for n in stored if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, n, k = stored[name].shape
        scale = torch.rand(experts, -(-n // 16), -(-k // 16)) * 0.01 + 0.001
        wide = scale.repeat_interleave(16, 1)[:, :n].repeat_interleave(16, 2)[:, :, :k]
        stored[name] = (stored[name] / wide).to(torch.float8_e4m3fn)
        floats[name] = stored[name].float() * wide
        stored |= {f"{name}_scale_inv": scale, f"{name}_activation_scale": torch.ones(())}
    save_file(stored, path, {"format": "pt"})
    quantise_config(folder, {"quant_method": "fp8", "weight_block_size": [16, 16]})
    parameters = dict(load(folder).named_parameters())
    for name, expected in floats.items():
        assert torch.equal(parameters[name], expected)


def _tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    byte_level_backend().save(str(folder / "tokenizer.json"))
    return folder


def test_what_a_package_quantised_is_not_quantised_again(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    save_packed(tmp_path, "llama", *CASES["fp8-block"][:2])
    quantise_config(tmp_path, {"quant_method": "torchao"})
    config = EngineConfig(model=str(tmp_path), device="cpu", quantize="int8")
    files = resolve_model(config, lambda line: None)
    with pytest.raises(ModelLoadError, match="in the format torchao, which is served as it is"):
        load_settings(files.config, config, CPU)
