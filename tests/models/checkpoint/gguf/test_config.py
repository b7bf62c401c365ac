"""Configs from metadata: what is exact reaches the config, what is not is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from stonechat_models.checkpoint.gguf.config import architecture_of, config_of, eos_token_ids
from stonechat_models.checkpoint.gguf.reader import GgufFile, GgufTensor
from stonechat_models.errors import UnsupportedModelError

LLAMA: dict[str, Any] = {
    "attention.head_count": 4,
    "embedding_length": 64,
    "block_count": 3,
    "context_length": 256,
    "attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    "feed_forward_length": 128,
}
GEMMA3: dict[str, Any] = {**LLAMA, "attention.sliding_window": 8}


def tensor(name: str, values: np.ndarray) -> GgufTensor:
    return GgufTensor(name, "F32", values.shape, values.astype(np.float32).view(np.uint8))


def file_of(
    fields: dict[str, Any], architecture: str = "llama", *tensors: GgufTensor, **tokenizer: Any
) -> GgufFile:
    metadata: dict[str, Any] = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{key}": value for key, value in fields.items()}
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}
    embedding = tensor("token_embd.weight", np.zeros((100, 64)))
    return GgufFile(Path("x.gguf"), metadata, {t.name: t for t in (embedding, *tensors)})


def refusal_of(fields: dict[str, Any], architecture: str = "llama", *tensors: GgufTensor) -> str:
    with pytest.raises(UnsupportedModelError) as error_info:
        config_of(file_of(fields, architecture, *tensors))
    return str(error_info.value)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in LLAMA.items() if name != key}


def test_the_smallest_file_has_the_values_of_the_specification() -> None:
    config = config_of(file_of(LLAMA, bos_token_id=1, eos_token_id=True))
    assert config["vocab_size"] == 100
    assert config["num_key_value_heads"] == 4
    assert config["head_dim"] == 16
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True
    assert config["rope_parameters"] == {"rope_theta": 10000.0, "rope_type": "default"}
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, None)
    assert "intermediate_size" not in config_of(file_of(without("feed_forward_length")))


def test_an_unknown_architecture_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'mamba' are not supported \(gemma2, gemma3"):
        architecture_of(file_of({}, "mamba"))


@pytest.mark.parametrize("value", [0, -1, True, "4", 4.0, [4, 2, 4], []])
def test_a_count_is_one_integer_above_0(value: object) -> None:
    message = refusal_of({**LLAMA, "attention.head_count": value})
    assert "attention.head_count is not one integer above 0" in message


def test_a_list_of_equal_counts_is_that_count() -> None:
    config = config_of(file_of({**LLAMA, "attention.head_count_kv": [2, 2, 2]}))
    assert config["num_key_value_heads"] == 2
    assert "head_count_kv is not" in refusal_of({**LLAMA, "attention.head_count_kv": [2, 1, 2]})


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("block_count", "block_count is missing"),
        ("attention.layer_norm_rms_epsilon", "epsilon is missing or not a number"),
    ],
)
def test_what_has_no_default_must_be_there(key: str, problem: str) -> None:
    message = refusal_of(without(key))
    assert problem in message
    assert "x.gguf (llama) cannot be converted exactly" in message


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"attention.value_length": 32}, "keys and values differ"),
        ({"rope.dimension_count": 8}, "only a part of each head"),
        ({"rope.scaling.type": "longrope"}, "type longrope is not supported"),
        ({"rope.scaling.type": "linear"}, "rope.scaling.factor is missing"),
        ({"rope.freq_base": "high"}, "rope.freq_base is missing or not a number"),
        ({"rope.freq_base": True}, "rope.freq_base is missing or not a number"),
        ({"expert_count": 8}, "mixtures of experts"),
    ],
)
def test_what_the_module_would_compute_otherwise_is_refused(
    fields: dict[str, Any], problem: str
) -> None:
    assert problem in refusal_of({**LLAMA, **fields})


def test_linear_scaling_reaches_the_config() -> None:
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    config = config_of(file_of({**LLAMA, **scaling}, "qwen2"))
    expected = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 8.0}
    assert config["rope_parameters"] == expected
    plain = config_of(file_of({**LLAMA, "rope.scaling.type": "none"}, "qwen2"))
    assert plain["rope_parameters"]["rope_type"] == "default"


def llama3_divisors(factor: float, theta: float) -> np.ndarray:
    """What transformers divides the frequencies of Llama 3 by, for heads of 128 elements."""
    parameters = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        head_dim=128,
        max_position_embeddings=131072,
        rope_parameters=parameters,
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = theta ** (-np.arange(64) / 64)
    return plain / scaled.numpy()


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recovered_from_its_divisors(factor: float) -> None:
    divisors = llama3_divisors(factor, 500000.0)
    fields = {**LLAMA, "attention.key_length": 128, "rope.freq_base": 500000.0}
    config = config_of(file_of(fields, "llama", tensor("rope_freqs.weight", divisors)))
    rope = config["rope_parameters"]
    assert rope.pop("factor") == pytest.approx(factor, rel=1e-4)
    assert rope == {
        "rope_theta": 500000.0,
        "rope_type": "llama3",
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_other_divisors_are_refused() -> None:
    divisors = llama3_divisors(8.0, 500000.0)
    divisors[40] *= 1.1
    fields = {**LLAMA, "attention.key_length": 128, "rope.freq_base": 500000.0}
    message = refusal_of(fields, "llama", tensor("rope_freqs.weight", divisors))
    assert "not those of Llama 3" in message
    message = refusal_of(LLAMA, "phi3", tensor("rope_factors_long.weight", divisors))
    assert "factors for long contexts" in message


def test_phi3_may_rotate_a_part_of_each_head() -> None:
    config = config_of(file_of({**LLAMA, "rope.dimension_count": 8}, "phi3"))
    assert config["rope_parameters"]["partial_rotary_factor"] == 0.5
    assert config["sliding_window"] is None
    config = config_of(file_of({**LLAMA, "attention.sliding_window": 2047}, "phi3"))
    assert config["rope_parameters"]["partial_rotary_factor"] == 1.0
    assert config["sliding_window"] == 2047


def test_gemma3_has_a_window_flag_for_each_layer_or_a_period() -> None:
    flags = {"attention.sliding_window_pattern": [True, False, True]}
    config = config_of(file_of({**GEMMA3, **flags}, "gemma3"))
    sliding, full = "sliding_attention", "full_attention"
    assert config["layer_types"] == [sliding, full, sliding]
    flags = {"attention.sliding_window_pattern": [True, False]}
    assert "one sliding-window flag per layer" in refusal_of({**GEMMA3, **flags}, "gemma3")
    config = config_of(file_of({**GEMMA3, "block_count": 7}, "gemma3"))
    assert config["layer_types"] == [sliding] * 5 + [full, sliding]


def test_gemma3_has_its_own_frequencies() -> None:
    """Gemma 3's report: 10k for the layers with a window, 1M for the others."""
    rope = config_of(file_of(GEMMA3, "gemma3"))["rope_parameters"]
    assert rope["sliding_attention"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert rope["full_attention"] == {"rope_type": "default", "rope_theta": 1e6}


def test_an_answer_ends_with_the_files_tokens_and_those_of_a_turn() -> None:
    tokens = ["a", "<|im_end|>", "<|eot_id|>", "<|end|>", "b", "<end_of_turn>"]
    gguf = file_of(
        LLAMA,
        tokens=tokens,
        token_type=[1, 3, 3, 1, 3, 4, 3],
        eos_token_id=4,
        eot_token_id=2,
    )
    assert eos_token_ids(gguf) == [4, 2, 1, 5]
    assert eos_token_ids(file_of(LLAMA, tokens=tokens)) == []
