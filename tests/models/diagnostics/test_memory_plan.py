"""Sizes calculated from headers equal those of the loaded models."""

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


def form(model_survey: ModelSurvey, name: str) -> ServingForm:
    return next(candidate for candidate in model_survey.forms if candidate.name == name)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sizes_are_those_of_the_loaded_module(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    # GPT-NeoX has one key head per query head, whatever its config says.
    head_changes = {"num_key_value_heads": 4} if family == "gpt_neox" else {}
    config = tiny_config(family, **head_changes)
    module = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    module.save_pretrained(tmp_path)
    report = survey(tmp_path)
    parameters = list({id(p): p for p in module.parameters()}.values())
    assert report.num_parameters == sum(p.numel() for p in parameters)
    assert report.refusal is None
    assert report.architecture == type(module).__name__
    assert form(report, "float32").weight_bytes == sum(p.numel() * 4 for p in parameters)
    shapes = check_packing(module.eval(), torch.device("cpu"), module.config.vocab_size).shapes
    assert report.kv_elements_per_token == sum(shape.num_elements for shape in shapes.values())
    assert report.max_model_len == 256


def test_a_mixture_reads_only_its_active_experts(tmp_path: Path) -> None:
    module = AutoModelForCausalLM.from_config(tiny_config("qwen3_moe"))
    module.save_pretrained(tmp_path)
    report = survey(tmp_path)
    experts = sum(p.numel() for name, p in module.named_parameters() if ".experts." in name)
    assert report.num_active_parameters == report.num_parameters - experts // 2  # 2 of 4
    embedding = module.get_input_embeddings().weight.numel()
    assert form(report, "float32").decode_bytes == 4 * (report.num_active_parameters - embedding)


def test_the_default_models_sizes_are_those_of_the_compiled_path(
    default_model_files: ModelFiles,
) -> None:
    from stonechat_models.backends import native

    report = survey("")
    assert report.num_parameters == 134_515_008
    for precision in ("auto", "int8", "int4"):
        config = EngineConfig(model="", quantize=precision, threads=1)  # type: ignore[arg-type]
        if native.supports(default_model_files, config) is not None:
            pytest.skip("the compiled path cannot be used here")
        model = native.NativeModel.load(default_model_files, config, lambda line: None)
        serving_form = form(report, "as stored" if precision == "auto" else precision)
        assert serving_form.weight_bytes == pytest.approx(model.info.weight_bytes, rel=0.01)
        assert serving_form.kv_bytes_per_token == model.kv_bytes_per_token
    assert [candidate.name for candidate in report.forms if candidate.is_default] == ["as stored"]


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox", "qwen3_moe"])
def test_sizes_of_quantised_models_are_those_of_the_loaded_ones(
    family: str, tmp_path: Path
) -> None:
    head_changes = {"num_key_value_heads": 4} if family == "gpt_neox" else {}
    moe = {"moe_intermediate_size": 96} if family == "qwen3_moe" else {}
    sizes = {"hidden_size": 96, "intermediate_size": 192, "vocab_size": 512, **head_changes, **moe}
    config = tiny_config(family, **sizes)
    team = quantize.load_team(1, lambda line: None)
    if team is None:
        pytest.skip("the compiled kernels cannot be used here")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    report = survey(tmp_path)
    assert report.native_refusal is not None
    for bits in ("int8", "int4"):
        module = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        quantize.quantize_checked(module, bits, torch.float32, team)
        expected = quantize.weight_bytes(module)
        assert form(report, bits).weight_bytes == pytest.approx(expected, rel=0.02)
    assert survey(tmp_path, quantize="int4").forms[-1].is_default
    assert [candidate.name for candidate in report.forms if candidate.is_default] == ["float32"]


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
    report = survey(tmp_path)
    float_form = form(report, "float32")
    available = report.free_memory - float_form.weight_bytes

    def budget(**changes: object) -> int:
        return report.kv_budget(float_form, EngineConfig(model="x", **changes))  # type: ignore[arg-type]

    assert budget(kv_cache_bytes=12345) == 12345
    assert budget(kv_cache_fraction=0.5) == pytest.approx(available * 0.5, abs=1)
    assert 0 < budget() <= 4 << 30
    assert budget(kv_cache_bytes=1 << 60) == available


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


def test_absent_models_are_refused(tmp_path: Path) -> None:
    for model in (tmp_path, tmp_path / "x.gguf", "nobody/nothing"):
        with pytest.raises(ModelLoadError, match=r"config|not on this machine|hub did not return"):
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
