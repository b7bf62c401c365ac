"""Plans for a CUDA device, whose answers the tests give."""

from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from stonechat_models.checkpoint.gguf.reader import read_gguf
from stonechat_models.config import EngineConfig
from stonechat_models.diagnostics import serving_forms
from stonechat_models.diagnostics.memory_plan import ModelSurvey, survey_model
from stonechat_models.diagnostics.survey import ServingForm
from tests.models.media.compiled_models import make_model
from tests.models.packed_writers import CASES, is_linear, save_packed
from tests.models.tiny_gguf import write_tiny_gguf
from tests.models.tiny_mmproj import tower_tensors, write_mmproj, write_text
from tests.models.tiny_models import save_tiny_model
from tests.models.tiny_tokenizers import save_byte_level

FREE, TOTAL = 7 << 20, 8 << 20
KV_BYTES = 2 * 2 * 2 * 16 * 2
"""Of a token in half precision: keys and values of two heads in two layers."""


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A small card. Tests change its numbers."""
    card = SimpleNamespace(capability=(9, 0), free=FREE)
    properties = SimpleNamespace(
        name="small", major=9, minor=0, total_memory=TOTAL, multi_processor_count=132
    )
    answers: dict[str, Any] = {
        "device_count": lambda: 1,
        "get_device_capability": lambda *_: card.capability,
        "get_device_properties": lambda *_: properties,
        "mem_get_info": lambda *_: (card.free, TOTAL),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return card


def survey(tmp_path: Path, family: str = "qwen3", **settings: Any) -> ModelSurvey:
    folder = tmp_path / family
    if not folder.exists():
        tokenizer = save_byte_level(tmp_path / f"{family}-tokenizer")
        save_tiny_model(folder, family, tokenizer, vocab_size=320)
    config = EngineConfig(model=str(folder), **{"device": "cuda", **settings})
    return survey_model(config, lambda line: None)


def test_the_card_and_the_steps(card: SimpleNamespace, tmp_path: Path) -> None:
    report = survey(tmp_path)
    assert (report.device, report.free_memory, report.total_memory) == ("cuda:0", FREE, TOTAL)
    assert (report.refusal, report.attention, report.graphs_refusal) == (None, "triton", None)
    form = next(form for form in report.forms if form.is_default)
    assert form.name == "bfloat16"
    assert form.kv_bytes_per_token == KV_BYTES
    budget = (FREE - form.weight_bytes) * 9 // 10
    assert form.kv_tokens == budget // form.kv_bytes_per_token // 16 * 16


def test_an_old_card(card: SimpleNamespace, tmp_path: Path) -> None:
    card.capability = (7, 5)
    report = survey(tmp_path)
    assert report.refusal is None
    assert report.attention == "batched"
    assert report.graphs_refusal == "batched attention cannot be captured"
    assert next(form.name for form in report.forms if form.is_default) == "float16"
    assert default_form(write_tiny_gguf(tmp_path / "tiny.gguf", "llama", "Q8_0")).name == "float16"


def test_a_machine_without_a_compiler(
    card: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_forms, "why_no_launcher", lambda: "there is none")
    report = survey(tmp_path)
    assert report.attention == "batched"
    assert report.graphs_refusal == "batched attention cannot be captured"
    assert default_form(write_tiny_gguf(tmp_path / "tiny.gguf", "llama", "Q8_0")).name == "bfloat16"


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("qwen3", {"eager": True}, "the settings say so"),
        ("qwen3", {"device_map": "auto"}, "a device map"),
        ("qwen3", {"attention_backend": "sdpa"}, "sdpa attention"),
        ("lfm2", {}, ""),
        ("bloom", {}, "one sequence at a time"),
        ("qwen3_moe", {}, ""),
    ],
    ids=["eager", "device map", "sdpa", "recurrent", "plain", "mixture of experts"],
)
def test_what_has_no_graphs(
    family: str, settings: dict[str, Any], reason: str, card: SimpleNamespace, tmp_path: Path
) -> None:
    report = survey(tmp_path, family, **settings)
    assert report.refusal is None
    assert (report.graphs_refusal is None) == (reason == "")
    assert reason in (report.graphs_refusal or "")


def test_a_model_that_is_larger_than_the_card(card: SimpleNamespace, tmp_path: Path) -> None:
    card.free = 20_000
    form = next(form for form in survey(tmp_path).forms if form.is_default)
    assert form.weight_bytes > 20_000
    assert form.kv_tokens == 0


def default_form(model: Path, **settings: Any) -> ServingForm:
    config = EngineConfig(model=str(model), **{"device": "cuda", **settings})
    report = survey_model(config, lambda line: None)
    assert report.refusal is None
    return next(form for form in report.forms if form.is_default)


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("weight_type", ["Q4_0", "Q8_0"])
def test_a_gguf_file_stays_as_it_is(weight_type: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama", weight_type)
    form, floats = default_form(path), default_form(path, quantize="none")
    assert (form.name, form.backend) == ("as stored", "transformers")
    assert floats.name == "bfloat16"
    tensors = read_gguf(path).tensors.values()
    codes = sum(t.data.nbytes for t in tensors if t.type_name == weight_type)
    others = sum(prod(t.shape) for t in tensors if t.type_name != weight_type)
    assert form.weight_bytes == codes + 2 * others
    assert form.decode_bytes < form.weight_bytes < 0.7 * floats.weight_bytes


@pytest.mark.usefixtures("card")
def test_a_vision_part_counts_as_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is loaded, of whatever type it is in its file."""
    q8 = gguf.GGMLQuantizationType.Q8_0
    model = make_model(tmp_path / "folder", "gemma3", monkeypatch)
    path = write_text(model, "gemma3", tmp_path / "tiny.gguf", q8)
    text = default_form(path)
    write_mmproj(model, "gemma3", tmp_path / "mmproj.gguf", q8)
    whole = default_form(path)
    vision = sum(tensor.numel() for tensor in tower_tensors(model, "gemma3").values())
    assert (text.name, whole.name) == ("as stored", "as stored")
    assert whole.weight_bytes == text.weight_bytes + 2 * vision


@pytest.mark.usefixtures("card")
def test_integers_in_groups_stay_as_they_are(tmp_path: Path) -> None:
    writer, quantization, _ = CASES["gptq"]
    save_packed(tmp_path, "llama", writer, quantization)
    form, floats = default_form(tmp_path), default_form(tmp_path, quantize="none")
    assert form.name == "as stored"
    assert form.weight_bytes < floats.weight_bytes


@pytest.mark.usefixtures("card")
def test_weights_that_kernels_do_not_have_count_as_floats(tmp_path: Path) -> None:
    """They are rows of no whole units, and another type of floats. Embeddings have kernels."""
    writer, quantization, _ = CASES["fp8-tensor"]
    floats = save_packed(
        tmp_path,
        "llama",
        writer,
        quantization,
        lambda name: is_linear(name) or "embed_tokens" in name,
        intermediate_size=200,
    )
    path, other = tmp_path / "model.safetensors", "model.layers.0.self_attn.q_proj.weight"
    stored = load_file(path)
    stored[other] = stored[other].float().to(torch.float8_e5m2)
    save_file(stored, path)
    kept = {n for n in floats if is_linear(n) and "down_proj" not in n and n != other}
    kept.add("model.embed_tokens.weight")
    assert {stored[name].dtype for name in kept} == {torch.float8_e4m3fn}
    expected = sum(t.numel() + 4 if n in kept else 2 * t.numel() for n, t in floats.items())
    assert default_form(tmp_path).weight_bytes == expected


def test_a_cpu_has_no_graphs_to_speak_of(tmp_path: Path) -> None:
    report = survey(tmp_path, device="cpu", backend="transformers")
    assert report.graphs_refusal is None
