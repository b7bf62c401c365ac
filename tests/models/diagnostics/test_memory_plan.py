"""What is calculated from headers equals what is loaded, and the refusals are the same."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config

from stonechat_models.backends import native
from stonechat_models.backends.base import CausalModel
from stonechat_models.backends.transformers.loading import quantize
from stonechat_models.backends.transformers.loading.load import load_transformers_model
from stonechat_models.checkpoint.cache import cache_root
from stonechat_models.checkpoint.resolve import ModelFiles, resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.diagnostics.memory_plan import ModelSurvey, survey_model
from stonechat_models.diagnostics.survey import ServingForm
from stonechat_models.errors import ModelLoadError
from stonechat_models.runtime.build import build_engine
from tests.models import tiny_gguf
from tests.models.audio_models import save_audio_model
from tests.models.backends.native import native_helpers
from tests.models.packed_writers import (
    AWQ,
    CASES,
    GPTQ,
    compressed,
    quantise_config,
    save_packed,
)
from tests.models.tiny_adapters import projections, write_adapter
from tests.models.tiny_embedders import save_embedder, save_encoder
from tests.models.tiny_models import FAMILIES, tiny_config
from tests.models.tiny_rerankers import save_reranker
from tests.models.tiny_tokenizers import ascii_backend
from tests.models.vision_models import save_vision_model
from tests.nightly import nightly

CPU = torch.device("cpu")
QUANTIZED = ({"quantize": "int8"}, {"quantize": "int4"})
DAILY = ("gemma2", "lfm2", "llama", "qwen3_moe")
PYTORCH_DAILY = ("gemma3", "gpt_oss", "qwen3_moe")
PACKED_DAILY = ("awq", "w8a8-asym", "fp8-block", "nvfp4", "mlx-5")


def silent(line: str) -> None:
    assert line


def config_for(model: Path | str, **changes: Any) -> EngineConfig:
    return EngineConfig(model=str(model), **{"device": "cpu", "threads": 1, **changes})


def survey(model: Path | str, **changes: Any) -> ModelSurvey:
    return survey_model(config_for(model, **changes), silent)


def form(report: ModelSurvey, name: str) -> ServingForm:
    return next(candidate for candidate in report.forms if candidate.name == name)


def save(folder: Path, config: Any) -> Path:
    """Save a random model of this config, and a tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    ascii_backend().save(str(folder / "tokenizer.json"))
    return folder


def load(files: ModelFiles, config: EngineConfig) -> CausalModel:
    if native.supports(files, config) is None:
        return native.NativeModel.load(files, config, silent)
    return load_transformers_model(files, config, CPU, silent)


def check_sizes(
    folder: Path, expected_backend: str, *others: dict[str, str], **changes: Any
) -> ModelSurvey:
    """Compare the plan's default form with the model that these settings load. Return the plan.

    `others`: changes of settings that load other forms of the same plan.
    """
    config = config_for(folder, **changes)
    report = survey_model(config, silent)
    assert report.refusal is None
    (default,) = (candidate for candidate in report.forms if candidate.is_default)
    forms = [(default, config)]
    for other in others:
        (name,) = other.values()
        forms.append((form(report, name), replace(config, **other)))
    for size, settings in forms:
        info = load(resolve_model(settings, silent), settings).info
        assert (size.backend, info.backend) == (expected_backend,) * 2
        assert size.weight_bytes == info.weight_bytes
        assert size.kv_bytes_per_token == info.kv_bytes_per_token
        assert report.num_parameters == info.num_parameters
        assert report.architecture == info.architecture
    return report


@pytest.fixture
def with_compiler() -> None:
    if quantize.load_team(1, silent) is None:
        pytest.skip("the compiled kernels cannot be used here")


@pytest.mark.usefixtures("with_compiler")
@pytest.mark.parametrize(
    "family", [*DAILY, *nightly(*sorted(native_helpers.FAMILIES.keys() - DAILY))]
)
def test_sizes_are_those_of_the_compiled_path(family: str, tmp_path: Path) -> None:
    native_helpers.make_model(family, tmp_path)
    ascii_backend().save(str(tmp_path / "tokenizer.json"))
    check_sizes(tmp_path, "native", *QUANTIZED)


@pytest.mark.parametrize(
    "family",
    [*PYTORCH_DAILY, "gpt2", *nightly(*sorted(FAMILIES.keys() - PYTORCH_DAILY))],
)
def test_sizes_are_those_of_the_loaded_module(family: str, tmp_path: Path) -> None:
    """Sizes are no multiples of a group or a panel, and those of experts are small."""
    if family == "gpt2":
        config: Any = GPT2Config(vocab_size=300, n_positions=256, n_embd=40, n_layer=2, n_head=4)
    else:
        config = tiny_config(family, hidden_size=48, intermediate_size=72)
    save(tmp_path, config)
    others = ({"dtype": "bfloat16"}, *QUANTIZED)
    check_sizes(tmp_path, "transformers", *others, backend="transformers")


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_config_may_leave_its_dtype_open(is_packed: bool, tmp_path: Path) -> None:
    if is_packed:
        save_packed(tmp_path, "llama", *CASES["awq"][:2])
    else:
        save(tmp_path, tiny_config("llama"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "auto"}))
    check_sizes(tmp_path, "transformers", backend="transformers")


def test_adapters_count_as_weights(tmp_path: Path) -> None:
    module = save(tmp_path / "model", tiny_config("llama"))
    write_adapter(tmp_path / "mine", AutoModelForCausalLM.from_pretrained(module), projections())
    settings = {"backend": "transformers", "dtype": "bfloat16"}
    plain = form(survey(tmp_path / "model", **settings), "bfloat16")
    lora = tuple(f"{name}={tmp_path / 'mine'}" for name in ("a", "b"))
    report = survey(tmp_path / "model", lora=lora, **settings)
    config = config_for(tmp_path / "model", lora=lora, kv_cache_bytes=1 << 20, **settings)
    engine, _ = build_engine(config, silent)
    num_bytes = sum(adapter.num_bytes for adapter in engine.model.info.adapters)
    assert form(report, "bfloat16").weight_bytes == plain.weight_bytes + num_bytes
    refused = survey(tmp_path / "model", lora=lora, deterministic=True, **settings)
    assert "--lora does not work with --deterministic" in (refused.refusal or "")


@pytest.mark.parametrize("family", ["qwen3_5_text", "mamba", *nightly("falcon_h1")])
def test_recurrent_states_are_counted(family: str, tmp_path: Path) -> None:
    folder = save(tmp_path, tiny_config(family))
    config = config_for(folder, kv_cache_bytes=1 << 18)
    report = survey_model(config, silent)
    for dtype in ("float32", "bfloat16"):
        info = build_engine(replace(config, dtype=dtype), silent)[0].model.info
        assert info.state_bytes > 0
        kv_bytes = info.kv_capacity_tokens * info.kv_bytes_per_token
        assert info.num_state_slots * info.state_bytes + kv_bytes <= 1 << 18
        size = form(report, dtype)
        assert (size.backend, size.weight_bytes) == (info.backend, info.weight_bytes)
        assert size.kv_bytes_per_token == info.kv_bytes_per_token
        assert size.kv_tokens == info.kv_capacity_tokens


@pytest.mark.usefixtures("with_compiler")
@pytest.mark.parametrize("family", ["qwen3_5_text", "lfm2"])
def test_recurrent_states_of_the_compiled_path_are_counted(family: str, tmp_path: Path) -> None:
    native_helpers.make_model(family, tmp_path, vocab_size=300)
    ascii_backend().save(str(tmp_path / "tokenizer.json"))
    config = config_for(tmp_path, kv_cache_bytes=1 << 21)
    model = build_engine(config, silent)[0].model
    info = model.info
    assert (info.backend, info.keeps_state) == ("native", True)
    assert model._states.num_bytes == info.num_state_slots * info.state_bytes > 0  # type: ignore[attr-defined]
    assert form(survey_model(config, silent), "as stored").kv_tokens == info.kv_capacity_tokens


@pytest.mark.parametrize("family", ["bloom", "phimoe"])
def test_models_with_their_own_cache_are_planned(family: str, tmp_path: Path) -> None:
    folder = save(tmp_path, tiny_config(family))
    report = survey(folder)
    assert report.refusal is None
    info = build_engine(config_for(folder), silent)[0].model.info
    default = form(report, "float32")
    assert (default.backend, default.weight_bytes) == (info.backend, info.weight_bytes)


@pytest.mark.parametrize("family", ["qwen3_moe", *nightly("gemma2", "gpt_oss")])
def test_sizes_are_right_without_a_compiler(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "load_team", lambda threads, progress: None)
    save(tmp_path, tiny_config(family))
    for settings in QUANTIZED:
        check_sizes(tmp_path, "transformers", backend="transformers", **settings)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, but for the compiled kernels."""
    kernels, folder = cache_root() / "native", tmp_path / "cache" / "stonechat"
    folder.mkdir(parents=True)
    (folder / "native").symlink_to(kernels)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("with_compiler", "own_cache")
@pytest.mark.parametrize(
    ("architecture", "weight_type"),
    [("phi3", "F16"), ("gemma3", "BF16"), ("qwen3moe", "Q5_1")],
)
def test_sizes_of_gguf_files_are_those_of_the_loaded_models(
    architecture: str, weight_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny_gguf.HEAD_DIMS, architecture, 32)
    monkeypatch.setattr(tiny_gguf, "EXPERT_FFN", 96)
    path = tiny_gguf.write_tiny_gguf(tmp_path / "tiny.gguf", architecture, weight_type)
    check_sizes(path, "native", *QUANTIZED)
    if architecture == "qwen3moe":
        check_sizes(path, "transformers", quantize="none")
        check_sizes(path, "transformers", backend="transformers", quantize="int4")


@pytest.mark.usefixtures("with_compiler")
@pytest.mark.parametrize(
    "name", [*PACKED_DAILY, *nightly(*(name for name in CASES if name not in PACKED_DAILY))]
)
def test_sizes_of_packed_weights_are_those_of_the_loaded_models(name: str, tmp_path: Path) -> None:
    writer, quantization, type_name = CASES[name]
    save_packed(tmp_path, "llama", writer, quantization)
    is_usual = name in ("gptq", "fp8-block", "bnb-nf4")
    report = check_sizes(tmp_path, "native", *(QUANTIZED if is_usual else ()))
    assert type_name in report.stored_types
    if is_usual:
        check_sizes(tmp_path, "transformers", dtype="float32")
        check_sizes(tmp_path, "transformers", quantize="none")
        check_sizes(tmp_path, "transformers", backend="transformers", quantize="int8")


def test_sizes_of_mxfp4_experts_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    """transformers makes them floats; two lie in each byte of the file."""
    save(tmp_path, tiny_config("gpt_oss", hidden_size=64, intermediate_size=64, vocab_size=300))
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(256, (*shape, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(118, 122, shape, dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    quantise_config(tmp_path, {"quant_method": "mxfp4"})
    check_sizes(tmp_path, "transformers", {"quantize": "int8"})


@pytest.mark.parametrize(
    ("quantization", "part"),
    [
        ({**GPTQ, "checkpoint_format": "marlin"}, "the GPTQ format marlin, which is not read"),
        ({**GPTQ, "bits": 5}, "the GPTQ format with 5 bits, which is not read"),
        ({**AWQ, "version": "gemv"}, "the AWQ format gemv, which is not read"),
        (
            {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"},
            "the ModelOpt format W4A8_AWQ, which is not read",
        ),
        (compressed("marlin-24"), "the compressed-tensors format marlin-24, which is not read"),
        ({"quant_method": "hqq"}, "in the format hqq, which needs the package hqq"),
        ({"quant_method": "exl9"}, "in the format exl9, which is not read"),
        (GPTQ, "packed GPTQ format that is not read: model.layers.0.self_attn.q_proj.weight"),
        ({}, "packed format that is not read: model.layers.0.self_attn.q_proj.weight"),
    ],
)
def test_formats_are_refused_by_name_as_at_load(
    quantization: dict[str, Any], part: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "tiny", tiny_config("llama", hidden_size=64, vocab_size=300))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if quantization:
        quantise_config(folder, quantization)
    assert part in check_refusal(folder)


@pytest.mark.usefixtures("with_compiler")
@pytest.mark.usefixtures("default_model_files")
def test_the_forms_of_the_default_model() -> None:
    report = survey("")
    assert report.num_parameters == 134_515_008
    forms = {(f.backend, f.name): f for f in report.forms}
    assert list(forms) == [
        *(("native", name) for name in ("as stored", "int8", "int4")),
        *(("transformers", name) for name in ("float32", "bfloat16")),
    ]
    assert [key for key, f in forms.items() if f.is_default] == [("native", "as stored")]
    assert forms["transformers", "float32"].weight_bytes == 4 * report.num_parameters


def test_a_mixture_reads_only_its_active_experts(tmp_path: Path) -> None:
    save(tmp_path, tiny_config("qwen3_moe"))
    module = AutoModelForCausalLM.from_pretrained(tmp_path)
    report = survey(tmp_path)
    experts = sum(p.numel() for name, p in module.named_parameters() if ".experts." in name)
    assert report.num_active_parameters == report.num_parameters - experts // 2  # 2 of 4
    embedding = module.get_input_embeddings().weight.numel()
    assert form(report, "float32").decode_bytes == 4 * (report.num_active_parameters - embedding)


def check_refusal(folder: Path, **changes: Any) -> str:
    """Return why the model is refused, which is the same before and at load."""
    with pytest.raises(ModelLoadError) as error:
        build_engine(config_for(folder, **changes), silent)
    reason = survey(folder, **changes).refusal
    assert reason is not None
    without_free_memory = re.compile(r"only [\d.]+ .B|[\d.]+ .B are free")
    assert without_free_memory.sub("", reason) == without_free_memory.sub("", str(error.value))
    return reason


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"kv_cache_bytes": 900 << 30}, "the KV cache needs 966.4 GB, but only"),
        ({"kv_cache_bytes": 1000}, "cannot hold a KV cache block of 16 tokens"),
        ({"kv_cache_bytes": 1 << 14, "max_model_len": 200}, "the KV cache holds only"),
        ({"max_model_len": 999}, "exceeds this model's limit of 256"),
        ({"quantize": "fp8"}, "fp8 weights need a CUDA device"),
        ({"backend": "native", "dtype": "bfloat16"}, "the native backend cannot run"),
        ({"backend": "native"}, "hidden_size is not a multiple of 32"),
        ({"attention_backend": "triton"}, "it needs a CUDA device"),
    ],
)
def test_settings_are_refused_as_at_load(
    changes: dict[str, Any], part: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "tiny", tiny_config("llama", hidden_size=48))
    assert part in check_refusal(folder, **changes)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("is_encoder_decoder", True, "encoder-decoder models are not served"),
        ("architectures", ["LlamaForSequenceClassification"], "a classifier with 2 labels"),
        ("architectures", ["Qwen2ForRewardModel"], "neither completes texts nor"),
        ("model_type", "nothing_known", "nothing_known"),
        ("head_dim", 40, "head_dim is not a multiple"),
        ("num_hidden_layers", 3, "no weights for model.layers.2"),
    ],
)
def test_configs_are_refused_as_at_load(key: str, value: object, part: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "tiny", tiny_config("llama", hidden_size=128, intermediate_size=64))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    backend = "native" if key == "head_dim" else "auto"
    assert part in check_refusal(folder, backend=backend)


def test_the_capacity_of_the_kv_cache_follows_the_settings(tmp_path: Path) -> None:
    folder = save(tmp_path / "tiny", tiny_config("llama", hidden_size=48))
    per_token = form(survey(folder), "float32").kv_bytes_per_token

    def tokens(**changes: Any) -> int:
        config = config_for(folder, **changes)
        engine, _ = build_engine(config, silent)
        num_tokens = form(survey_model(config, silent), "float32").kv_tokens
        assert num_tokens == engine.model.info.kv_capacity_tokens
        return num_tokens

    assert tokens() == 256 * 128  # all sequences of full length
    assert tokens(max_num_seqs=2) == 512
    assert tokens(kv_cache_bytes=per_token * 100) == 96  # whole blocks
    assert tokens(kv_cache_bytes=per_token * 100, block_size=32) == 96


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_an_embedding_model_has_one_form(family: str, tmp_path: Path) -> None:
    folder = save_embedder(tmp_path / "model", family)
    report = survey(folder)
    assert report.refusal is None
    assert report.use == "embeddings"
    engine, _ = build_engine(config_for(folder), silent)
    (only,) = report.forms
    assert (only.name, only.backend) == (engine.model.info.dtype, "transformers")
    assert only.weight_bytes == engine.model.info.weight_bytes


def test_an_encoder_for_another_task_is_refused(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "model", "bert")
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"architectures": ["BertForSequenceClassification"]}
    path.write_text(json.dumps(config))
    refusal = survey(folder).refusal
    assert refusal is not None
    assert "a classifier with 2 labels" in refusal


def test_a_reranker_has_one_form(tmp_path: Path) -> None:
    folder = save_reranker(tmp_path / "model", "bert")
    report = survey(folder)
    assert (report.refusal, report.use) == (None, "reranking")
    engine, _ = build_engine(config_for(folder), silent)
    (only,) = report.forms
    assert (only.name, only.backend) == (engine.model.info.dtype, "transformers")
    assert only.weight_bytes == engine.model.info.weight_bytes


def test_models_that_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower counts among the weights, but no decode step reads it."""
    folder = save_vision_model(tmp_path / "llava", "llava")
    report = survey(folder, backend="transformers")
    assert (report.may_take_images, report.image_refusal) == (True, "")
    config = config_for(folder, backend="transformers")
    model = load_transformers_model(resolve_model(config, silent), config, CPU, silent)
    assert model.info.images is not None
    whole = form(report, "float32")
    assert whole.weight_bytes == model.info.weight_bytes
    text: Any = model.module
    parts = (text.model.language_model, text.lm_head)
    embedding = text.get_input_embeddings().weight
    read = sum(w.nbytes for part in parts for w in part.parameters() if w is not embedding)
    assert whole.decode_bytes == read
    assert survey(folder, tensor_parallel=2).image_refusal == "several devices share the model"
    blind = save_vision_model(tmp_path / "paligemma", "paligemma")
    assert "attend to later ones" in survey(blind).image_refusal
    monkeypatch.setattr("stonechat_models.media.hf_processor.find_spec", lambda name: None)
    assert "pip install 'stonechat[vision]'" in survey(folder).image_refusal
    assert not survey(save(tmp_path / "text", tiny_config("llama"))).may_take_images


def test_models_that_hear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_audio_model(tmp_path / "voxtral", "voxtral")
    report = survey(folder, backend="transformers")
    assert (report.refusal, report.may_take_audio, report.audio_refusal) == (None, True, "")
    assert (report.may_take_images, report.image_refusal) == (False, "")
    config = config_for(folder, backend="transformers")
    model = load_transformers_model(resolve_model(config, silent), config, CPU, silent)
    assert model.info.audio is not None
    whole = form(report, "float32")
    assert whole.weight_bytes == model.info.weight_bytes
    tower = sum(w.nbytes for w in model.module.model.audio_tower.parameters())
    assert whole.decode_bytes < whole.weight_bytes - tower
    monkeypatch.setattr("stonechat_models.media.hf_processor.find_spec", lambda name: None)
    assert "pip install 'stonechat[audio]'" in survey(folder).audio_refusal
