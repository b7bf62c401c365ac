"""A config.json is checked as it is read. The message names the file and the key."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, Qwen3MoeConfig

from stonechat_models.checkpoint.hf_config import parse_config, read_config
from stonechat_models.errors import ModelLoadError

GOOD = json.loads(LlamaConfig(hidden_size=64, dtype="bfloat16").to_json_string(use_diff=False))


def test_the_fields_are_those_of_the_file() -> None:
    config = parse_config({**GOOD, "architectures": ["LlamaForCausalLM"]}, "x")
    sizes = (config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads)
    assert sizes == (32, 64, 32, 32)
    names = (config.model_type, config.architecture, config.dtype)
    assert names == ("llama", "LlamaForCausalLM", "bfloat16")
    assert config.rope.read("rope_type", str) == "default"
    assert config.expert_share == 1.0


def test_older_keys_mean_the_same() -> None:
    older = {"torch_dtype": "torch.float16", "n_positions": 77, "num_attention_heads": 4}
    config = parse_config({**older, "rope_scaling": {"factor": 2}}, "x")
    assert (config.dtype, config.max_position_embeddings) == ("float16", 77)
    assert (config.num_kv_heads, config.rope.read("factor", float)) == (4, 2.0)
    moe = Qwen3MoeConfig(num_experts=8, num_experts_per_tok=2)
    assert parse_config(json.loads(moe.to_json_string()), "x").expert_share == 0.25


def test_the_language_model_of_several_parts_counts() -> None:
    text = {"model_type": "inner", "hidden_size": 8, "dtype": None, "layer_types": ["x"]}
    config = parse_config({"model_type": "outer", "dtype": "float32", "text_config": text}, "x")
    assert (config.model_type, config.hidden_size, config.dtype) == ("outer", 8, "float32")
    assert config.layer_types == ("x",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "x"),
        ("num_attention_heads", 0),
        ("num_key_value_heads", -1),
        ("num_hidden_layers", 2.5),
        ("vocab_size", True),
        ("max_position_embeddings", [1]),
        ("layer_types", "full_attention"),
        ("layer_types", ["full_attention"]),
        ("architectures", [1]),
        ("rope_parameters", 3),
        ("text_config", []),
        ("dtype", 16),
        ("num_experts_per_tok", "two"),
        ("chunk_size", 10**12),
        ("mamba_chunk_size", 1e6),
    ],
)
def test_a_value_that_cannot_be_right_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**GOOD, key: value}))
    with pytest.raises(ModelLoadError, match=f"{path}: {key} "):
        read_config(path)


def test_keys_of_one_family_are_checked_when_they_are_read() -> None:
    keys = parse_config({"a": None, "b": "1", "c": 0, "d": {"e": float("nan")}}, "file").keys
    assert (keys.read("a", int, 3), keys.read("x", float, 0.5), keys.size("a")) == (3, 0.5, 0)
    assert (keys.is_null("a"), keys.is_null("x"), keys.is_null("b")) == (True, False, False)
    for kind in (int, float, bool, list[str]):
        with pytest.raises(ModelLoadError, match="file: b is '1'"):
            keys.read("b", kind)
    with pytest.raises(ModelLoadError, match="file: c is 0, which is not a number above 0"):
        keys.positive("c", float)
    with pytest.raises(ModelLoadError, match="file: d: e is nan"):
        keys.section("d").positive("e", float)
    with pytest.raises(ModelLoadError, match="file: d: f is None"):
        keys.section("d").read("f", int)
    large = parse_config({"f": 1e39}, "file").keys
    with pytest.raises(ModelLoadError, match=r"file: f is 1e\+39, which is too large"):
        large.read("f", float)


@pytest.mark.parametrize(
    "value", ['{"__float__": "abc"}', '{"__float__": [1]}', "[" * 600 + "]" * 600]
)
def test_values_that_transformers_does_not_write_are_refused(value: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GOOD)[:-1] + f', "x": {value}}}')
    with pytest.raises(ModelLoadError, match=r"config\.json: it is not a valid json file"):
        read_config(path)


def test_infinity_is_read_as_transformers_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**GOOD, "x": [{"__float__": "Infinity"}]}))
    assert read_config(path).raw["x"] == [float("inf")]


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_file_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        read_config(path)
