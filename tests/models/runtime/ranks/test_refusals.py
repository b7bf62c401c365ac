"""Models and settings that several devices cannot share are refused before anything is loaded."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from stonechat_models import EngineConfig, ModelLoadError, UnsupportedModelError
from stonechat_models.checkpoint.hf_config import parse_config
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.runtime.build import build_engine
from stonechat_models.runtime.ranks.refusals import (
    refuse_model,
    refuse_settings,
    refuse_uneven,
)
from stonechat_models.runtime.ranks.split_types import SPLIT_TYPES
from tests.models.tiny_models import tiny_config

CPU = torch.device("cpu")
CONFIG = EngineConfig(model="m", device="cpu", tensor_parallel=2)


def files(tmp_path, family="llama", weights="model.safetensors", **changes) -> ModelFiles:
    raw = tiny_config(family, **{"vocab_size": 212, **changes}).to_dict()
    config = parse_config(raw, "config.json")
    return ModelFiles("tiny", tmp_path, config, None, (tmp_path / weights,))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backend": "native"}, "--backend native"),
        ({"quantize": "int8"}, "--quantize"),
        ({"adapter": "a"}, "--adapter"),
        ({"lora": ("a=folder",)}, "--lora"),
        ({"device_map": "auto"}, "--device-map"),
        ({"draft_model": "d"}, "--draft-model"),
        ({"deterministic": True}, "--deterministic"),
        ({"overlap": True}, "--overlap"),
        ({"trust_remote_code": True}, "--trust-remote-code"),
        ({"engine_process": False}, "--no-engine-process"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, reason):
    with pytest.raises(ModelLoadError, match=f"--tensor-parallel does not go with {reason}"):
        build_engine(replace(CONFIG, model="nowhere", **changes), lambda line: None)


def test_devices_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device, reason in (
        (torch.device("mps"), "needs CUDA devices, or a CPU; mps"),
        (torch.device("cuda", 1), "CUDA_VISIBLE_DEVICES"),
        (torch.device("cuda", 0), "there are only 1"),
    ):
        with pytest.raises(ModelLoadError, match=reason):
            refuse_settings(CONFIG, device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refuse_settings(CONFIG, torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("changes", "num_ranks", "reason"),
    [
        ({"num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 48}, 2,
         "the model has 3 attention heads: choose 3$"),
        ({}, 4, "the model has 2 key and value heads: choose 2$"),
        ({"num_attention_heads": 5, "num_key_value_heads": 1, "hidden_size": 40}, 5,
         "1 key and value heads$"),
        ({"intermediate_size": 47}, 2, "gate_proj.weight has 47 rows or columns"),
        ({"vocab_size": 211}, 2, "211 rows or columns"),
    ],
)  # fmt: skip
def test_parts_that_are_not_equal_are_refused(tmp_path, changes, num_ranks, reason):
    model = files(tmp_path, **changes)
    has_odd_heads = "heads" in reason
    if not has_odd_heads:
        refuse_model(model, num_ranks)
    with pytest.raises(UnsupportedModelError, match=reason):
        (refuse_model if has_odd_heads else refuse_uneven)(model, num_ranks)


def test_other_files_and_types_are_refused(tmp_path):
    refuse_model(files(tmp_path), 2)
    refuse_uneven(files(tmp_path), 2)
    with pytest.raises(UnsupportedModelError, match="no plan to split models of type gpt_oss"):
        refuse_uneven(files(tmp_path, "gpt_oss"), 2)
    with pytest.raises(UnsupportedModelError, match="these are pickle files"):
        refuse_model(files(tmp_path, weights="model.bin"), 2)
    with pytest.raises(UnsupportedModelError, match="these are gguf files"):
        refuse_model(replace(files(tmp_path), gguf=tmp_path / "m.gguf"), 2)
    with pytest.raises(UnsupportedModelError, match="does not know models of type bloom"):
        refuse_model(files(tmp_path, "bloom"), 2)
    with pytest.raises(UnsupportedModelError, match="not quantised: these have the format FP8"):
        refuse_model(files(tmp_path, quantization_config={"quant_method": "fp8"}), 2)


def test_types_whose_states_or_layers_are_not_split_are_not_listed():
    """Some of them would give other logits in silence."""
    assert not SPLIT_TYPES & {"gemma3n_text", "hrm_text", "qwen3_next", "gpt_oss", "bloom"}


def test_the_odd_heads_of_the_default_model_are_refused(default_model_files, tmp_path):
    """SmolLM2-135M has 9 heads and 3 key and value heads."""
    config = EngineConfig(model="", device="cpu", tensor_parallel=2)
    with pytest.raises(UnsupportedModelError, match="gguf files"):
        build_engine(config, lambda line: None)
    folder = tmp_path / "model"
    shutil.copytree(default_model_files.folder, folder)
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="9 attention heads: choose 3"):
        build_engine(replace(config, model=str(folder)), lambda line: None)
