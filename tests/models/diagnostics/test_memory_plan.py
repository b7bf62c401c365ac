"""What is worked out from headers equals what loading finds."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from stonechat_models.backends.transformers import quantize
from stonechat_models.backends.transformers.packing_check import check_packing
from stonechat_models.checkpoint.headers import TensorHeader, safetensors_headers
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.config import EngineConfig
from stonechat_models.diagnostics.memory_plan import (
    ModelSurvey,
    ServingForm,
    _mixed_bytes,
    survey_model,
)
from stonechat_models.errors import ModelLoadError
from tests.models.tiny_models import FAMILIES, tiny_config


def survey(model: Path | str, **changes: object) -> ModelSurvey:
    config = EngineConfig(model=str(model), device="cpu", **changes)  # type: ignore[arg-type]
    return survey_model(config, lambda line: None)


def form(found: ModelSurvey, name: str) -> ServingForm:
    return next(one for one in found.forms if one.name == name)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sizes_are_those_of_the_loaded_module(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    # GPT-NeoX has no key heads of its own, whatever a config says.
    own = {"num_key_value_heads": 4} if family == "gpt_neox" else {}
    config = tiny_config(family, **own)
    module = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    module.save_pretrained(tmp_path)
    found = survey(tmp_path)
    parameters = list({id(p): p for p in module.parameters()}.values())
    assert found.num_parameters == sum(p.numel() for p in parameters)
    assert found.refusal is None
    assert found.architecture == type(module).__name__
    assert form(found, "float32").weight_bytes == sum(p.numel() * 4 for p in parameters)
    shapes = check_packing(module.eval(), torch.device("cpu"), module.config.vocab_size).shapes
    assert found.kv_elements_per_token == sum(shape.num_elements for shape in shapes.values())
    assert found.max_model_len == 256


def test_a_mixture_reads_only_its_active_experts(tmp_path: Path) -> None:
    module = AutoModelForCausalLM.from_config(tiny_config("qwen3_moe"))
    module.save_pretrained(tmp_path)
    found = survey(tmp_path)
    experts = sum(p.numel() for name, p in module.named_parameters() if ".experts." in name)
    assert found.num_active_parameters == found.num_parameters - experts // 2  # 2 of 4
    embedding = module.get_input_embeddings().weight.numel()
    assert form(found, "float32").decode_bytes == 4 * (found.num_active_parameters - embedding)


def test_the_default_models_sizes_are_those_of_the_compiled_path(
    default_model_files: ModelFiles,
) -> None:
    from stonechat_models.backends import native

    found = survey("")
    assert found.num_parameters == 134_515_008
    for precision in ("auto", "int8", "int4"):
        config = EngineConfig(model="", quantize=precision, threads=1)  # type: ignore[arg-type]
        if native.supports(default_model_files, config) is not None:
            pytest.skip("the compiled path cannot be used here")
        model = native.NativeModel.load(default_model_files, config, lambda line: None)
        mine = form(found, "as stored" if precision == "auto" else precision)
        assert mine.weight_bytes == pytest.approx(model.info.weight_bytes, rel=0.01)
        assert mine.kv_bytes_per_token == model.kv_bytes_per_token
    assert [one.name for one in found.forms if one.is_default] == ["as stored"]


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox", "qwen3_moe"])
def test_sizes_of_quantised_models_are_those_of_the_loaded_ones(
    family: str, tmp_path: Path
) -> None:
    own = {"num_key_value_heads": 4} if family == "gpt_neox" else {}
    moe = {"moe_intermediate_size": 96} if family == "qwen3_moe" else {}
    sizes = {"hidden_size": 96, "intermediate_size": 192, "vocab_size": 512, **own, **moe}
    config = tiny_config(family, **sizes)
    team = quantize.load_team(1, lambda line: None)
    if team is None:
        pytest.skip("the compiled kernels cannot be used here")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    found = survey(tmp_path)
    assert found.native_refusal is not None
    for bits in ("int8", "int4"):
        module = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        quantize.quantize_checked(module, bits, torch.float32, team)
        expected = quantize.weight_bytes(module)
        assert form(found, bits).weight_bytes == pytest.approx(expected, rel=0.02)
    assert survey(tmp_path, quantize="int4").forms[-1].is_default
    assert [one.name for one in found.forms if one.is_default] == ["float32"]


def test_a_model_that_would_be_wrong_is_refused_with_the_reason(tmp_path: Path) -> None:
    config = tiny_config("qwen3").to_dict()
    AutoModelForCausalLM.from_config(tiny_config("qwen3")).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, "layer_types": ["linear_attention"] * 2}))
    assert "linear_attention" in (survey(tmp_path).refusal or "")
    path.write_text(json.dumps({**config, "model_type": "nothing_known"}))
    assert "nothing_known" in (survey(tmp_path).refusal or "")
    path.write_text(json.dumps(config))
    assert "256" in (survey(tmp_path, max_model_len=999).refusal or "")


def test_the_kv_budget_follows_the_settings(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(tiny_config("llama")).save_pretrained(tmp_path)
    found = survey(tmp_path)
    one = form(found, "float32")
    left = found.free_memory - one.weight_bytes

    def budget(**changes: object) -> int:
        return found.kv_budget(one, EngineConfig(model="x", **changes))  # type: ignore[arg-type]

    assert budget(kv_cache_bytes=12345) == 12345
    assert budget(kv_cache_fraction=0.5) == pytest.approx(left * 0.5, abs=1)
    assert 0 < budget() <= 4 << 30
    assert budget(kv_cache_bytes=1 << 60) == left


def test_headers_equal_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16)}, path)
    found = {t.name: (t.type_name, t.shape, t.num_bytes) for t in safetensors_headers(path)}
    assert found == {"a": ("F32", (3, 4), 48), "b": ("BF16", (5,), 10)}


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"{}" * 50])
def test_damaged_headers_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match="no safetensors file"):
        safetensors_headers(path)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    for model in (tmp_path, tmp_path / "x.gguf", "nobody/nothing"):
        with pytest.raises(ModelLoadError, match=r"config|not on this machine|hub did not give"):
            survey(model)


@pytest.mark.parametrize(
    ("name", "is_router"),
    [
        ("blk.0.ffn_gate.weight", False),
        ("blk.0.ffn_gate_inp.weight", True),
        ("model.layers.0.mlp.gate.weight", True),
        ("model.layers.0.mlp.gate_proj.weight", False),
    ],
)
def test_a_gate_is_not_taken_for_a_router(name: str, is_router: bool) -> None:
    tensor = TensorHeader(name, "F32", (64, 64), 64 * 64 * 4)
    assert _mixed_bytes(tensor, 4.5, 4) == (64 * 64 * 4 if is_router else 64 * 64 * 4.5 / 8)
