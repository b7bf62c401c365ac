"""Configs from metadata: what is exact reaches the config, what is not is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from stonechat_models.checkpoint.gguf.config import architecture_of, config_of, eos_token_ids
from stonechat_models.checkpoint.gguf.reader import GgufFile, GgufTensor
from stonechat_models.errors import ModelLoadError, UnsupportedModelError

LLAMA: dict[str, Any] = {
    "attention.head_count": 4,
    "embedding_length": 64,
    "block_count": 3,
    "context_length": 256,
    "attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    "feed_forward_length": 128,
}
YARN: dict[str, Any] = {
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}
EXPERTS: dict[str, Any] = {
    "expert_count": 4,
    "expert_used_count": 1,
    "expert_feed_forward_length": 32,
    "interleave_moe_layer_step": 1,
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


def test_an_unknown_architecture_is_refused_with_what_may_work() -> None:
    message = r"x\.gguf: .* 'rwkv7' are not supported; the same model as a folder of safetensors"
    with pytest.raises(UnsupportedModelError, match=message):
        architecture_of(file_of({}, "rwkv7"))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"general.type": "adapter"}, "a LoRA adapter"),
        ({"general.type": "imatrix"}, "a record of activations"),
        ({"general.architecture": "clip"}, "the vision or audio part of a model"),
    ],
)
def test_a_file_that_is_no_model_says_what_it_is(fields: dict[str, Any], what: str) -> None:
    file = file_of(LLAMA)
    with pytest.raises(ModelLoadError, match=f"is {what}, not a model; name the model's file"):
        config_of(replace(file, metadata={**file.metadata, **fields}))


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
        ({"expert_count": 8}, "expert_used_count is missing"),
        (
            {"expert_count": 1 << 20, "expert_used_count": 2},
            "expert_count is 1048576, which is too",
        ),
        ({"rope.scaling.type": "yarn", **YARN, "rope.scaling.yarn_ext_factor": 0.5}, "is not 1"),
        ({"nextn_predict_layers": 3}, "nextn_predict_layers is 3 of 3 layers"),
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


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_scaling_without_a_type_is_linear(key: str) -> None:
    def rope(**fields: object) -> dict[str, Any]:
        config = config_of(file_of({**LLAMA, **fields}))
        parameters = config["rope_parameters"]
        assert isinstance(parameters, dict)
        return parameters

    linear = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}
    assert rope(**{key: 4.0}) == linear
    assert rope(**{key: 4.0, "rope.scaling.type": "linear"}) == linear
    for factor, kind in ((1.0, None), (0.0, None), (4.0, "none")):
        assert rope(**{key: factor, "rope.scaling.type": kind})["rope_type"] == "default"
    assert rope(**{"rope.scale_linear": 2.0, "rope.scaling.factor": 4.0}) == linear
    assert "is -2.0" in refusal_of({**LLAMA, key: -2.0})
    divisors = tensor("rope_freqs.weight", llama3_divisors(8.0, 10000.0))
    fields = {**LLAMA, "attention.key_length": 128, key: 4.0}
    assert "and a scaling of them" in refusal_of(fields, "llama", divisors)


def test_frequencies_that_are_missing_or_too_many_are_refused() -> None:
    """llama.cpp loads no such file either."""
    assert "rope_freqs.weight is missing" in refusal_of(GEMMA4, "gemma4")
    for fields, architecture, count in ((GEMMA4, "gemma4", 16), (LLAMA, "llama", 8)):
        for values in (np.ones(count - 1), np.ones(2 * count), np.ones((count, 1))):
            message = refusal_of(fields, architecture, tensor("rope_freqs.weight", values))
            assert f"divisors for {count} RoPE frequencies" in message


def test_an_attention_factor_is_refused_where_nothing_computes_it() -> None:
    for kind in (None, "linear", "yarn"):
        fields = {**LLAMA, **YARN, "rope.scaling.type": kind}
        message = refusal_of({**fields, "rope.scaling.attn_factor": 1.2})
        assert "attention factor is not 1" in message
        assert config_of(file_of({**fields, "rope.scaling.attn_factor": 1.0}))


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


SCALES: dict[str, Any] = {
    "attention.scale": 0.5,
    "embedding_scale": 12.0,
    "residual_scale": 0.25,
    "logit_scale": 8.0,
}
GEMMA4: dict[str, Any] = {
    **LLAMA,
    "attention.sliding_window": 8,
    "attention.key_length": 32,
    "attention.key_length_swa": 16,
    "attention.head_count_kv": 2,
    "block_count": 6,
    "attention.layer_norm_rms_epsilon": 1e-6,
}
LATENT: dict[str, Any] = {
    **LLAMA,
    "attention.kv_lora_rank": 16,
    "attention.key_length_mla": 24,
    "attention.value_length_mla": 16,
    "rope.dimension_count": 8,
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": 32,
}
SSM: dict[str, Any] = {
    **LLAMA,
    "ssm.inner_size": 128,
    "ssm.time_step_rank": 4,
    "ssm.state_size": 8,
    "ssm.group_count": 1,
    "ssm.conv_kernel": 4,
    "attention.head_count_kv": [0, 2, 0],
}
SCALED_SSM = {**SSM, **SCALES}
MIXTURE: dict[str, Any] = {
    **LLAMA,
    **EXPERTS,
    "attention.sliding_window": 8,
    "expert_group_count": 1,
    "expert_shared_count": 0,
}
LAYER_NORM: dict[str, Any] = {**LLAMA, "attention.layer_norm_epsilon": float(np.float32(1e-5))}
WIDE: dict[str, Any] = {**LAYER_NORM, "feed_forward_length": 256}
MIMO2: dict[str, Any] = {
    **MIXTURE,
    "attention.head_count_kv": [1, 2, 1],
    "attention.sliding_window_pattern": [0, 1, 0],
    "attention.value_scale": 0.7,
    "attention.value_length": 16,
    "rope.dimension_count": 8,
    "rope.freq_base_swa": 1e4,
}
GEMMA3N: dict[str, Any] = {
    **GEMMA3,
    "attention.shared_kv_layers": 0,
    "embedding_length_per_layer_input": 8,
    "altup.active_idx": 0,
    "altup.num_inputs": 4,
    "activation_sparsity_scale": [-float("inf")] * 3,
}


def read_all(file: GgufFile) -> None:
    config_of(file)
    list(architecture_of(file).extra(file))


@pytest.mark.parametrize(
    ("architecture", "fields", "problem"),
    [
        ("granite", {**LLAMA, **SCALES, "logit_scale": 0.0}, "logit_scale is 0.0, which is not"),
        ("granite", LLAMA, "attention.scale is missing"),
        ("granite", {**LLAMA, **SCALES, "feed_forward_length": None}, "forward_length is missing"),
        *(
            (name, {**MIXTURE, **more, "expert_gating_func": value}, f"func is {value}, and not")
            for name, more, value in (
                ("afmoe", {}, 1),
                ("dots1", {}, 1),
                ("minimax-m2", {}, 1),
                ("glm4moe", {}, 1),
                ("qwen3moe", {}, 2),
                ("olmoe", {}, 3),
                ("gpt-oss", {}, 1),
            )
        ),
        ("afmoe", {**MIXTURE, "expert_weights_norm": False}, "expert_weights_norm is not True"),
        ("mellum", {**MIXTURE, "expert_weights_norm": False}, "expert_weights_norm is not True"),
        ("deepseek2", {**LATENT, "expert_weights_norm": True}, "weights_norm is not False"),
        ("qwen3moe", {**MIXTURE, "expert_group_count": 4}, "its experts are in groups"),
        ("olmo", {**LAYER_NORM, "attention.layer_norm_epsilon": 1e-6}, "epsilon is not 1e-05"),
        *(
            (name, {**LAYER_NORM, "feed_forward_length": None}, "feed_forward_length is missing")
            for name in ("gpt2", "starcoder", "falcon", "bloom")
        ),
        ("bloom", LAYER_NORM, "feed_forward_length is not 4 times embedding_length"),
        ("mpt", {**WIDE, "attention.max_alibi_bias": 4.0}, "attention.max_alibi_bias is not 8.0"),
        ("mpt", {**WIDE, "attention.head_count_kv": 2}, "head_count_kv is not the number of heads"),
        ("mpt", WIDE, "attention.max_alibi_bias is missing"),
        ("nemotron", LLAMA, "attention.layer_norm_epsilon is missing"),
        ("mimo2", {**MIMO2, "attention.value_scale": None}, "attention.value_scale is missing"),
        ("mimo2", {**MIMO2, "attention.head_count_kv": [1, 1, 1]}, "not twice as large in layers"),
        ("mimo2", {**MIMO2, "rope.freq_base_swa": None}, "rope.freq_base_swa is missing"),
        ("mimo2", {**MIMO2, "rope.scaling.factor": 2.0}, "RoPE scaling of this architecture is"),
        ("llama", {**LLAMA, "attention.value_scale": 0.7}, "with attention.value_scale are not"),
        ("glm-dsa", LATENT, "attention.indexer.head_count is missing"),
        ("laguna", {**MIXTURE, "expert_shared_feed_forward_length": 8}, "attn_gate does not have"),
        (
            "minicpm3",
            {**LATENT, "attention.q_lora_rank": 8, "attention.key_length": 24},
            "attn_kv_b",
        ),
        (
            "minicpm3",
            {**LATENT, "attention.q_lora_rank": 8, "attention.key_length": 8},
            "RoPE covers 8 dimensions of heads of size 8",
        ),
        (
            "minicpm3",
            {
                **LATENT,
                "attention.q_lora_rank": 8,
                "attention.key_length": 24,
                "attention.head_count": 0,
            },
            "attention.head_count is not one integer above 0",
        ),
        ("kimi-linear", {**LATENT, "expert_gating_func": 2}, "kda.head_dim is missing"),
        (
            "jamba",
            {**SSM, "attention.head_count_kv": [0, 0, 0]},
            "its layers with attention do not",
        ),
        ("jamba", {**SSM, "ssm.inner_size": 100}, "not a multiple of embedding_length"),
        ("gemma3n", GEMMA3, "attention.shared_kv_layers is missing"),
        ("gemma3n", {**GEMMA3N, "activation_sparsity_scale": [1.6]}, "not one number for each"),
        ("gemma3n", {**GEMMA3N, "activation_sparsity_scale": [1.6] * 2 + [True]}, "not one number"),
        ("gemma3n", GEMMA3N, "no tensor has the laurel_rank"),
        ("llama", {**LLAMA, "attention.causal": False}, "with attention.causal are not supported"),
        ("deepseek2", {**LATENT, "attention.temperature_scale": 0.1}, "with attention.temperature"),
        ("qwen3", {**LLAMA, "swiglu_clamp_exp": [0.0, 7.0]}, "with swiglu_clamp_exp are not"),
        ("mistral3", {**LLAMA, "rope.scaling_beta": 0.1}, "with rope.scaling_beta are not"),
        ("mistral3", {**LLAMA, "rope.scaling.mscale": 1.0}, "with rope.scaling.mscale are not"),
        ("mistral3", {**LLAMA, "attention.temperature_scale": 0.1}, "RoPE scaling is not YaRN"),
        ("glm4", {**LLAMA, "rope.dimension_sections": [8, 12, 12, 0]}, "order of M-RoPE"),
        ("cohere2", LLAMA, "attention.layer_norm_epsilon is missing"),
        ("gemma4", {**GEMMA4, "attention.head_count_kv": [2, 1, 2, 2, 2, 2]}, "one kind differ"),
        ("gemma4", {**GEMMA4, "attention.sliding_window_pattern": [True] * 6}, "one kind differ"),
        ("gemma4", {**GEMMA4, "attention.head_count_kv": [2] * 5 + [1]}, "other numbers of key"),
        ("gemma4", {**GEMMA4, "feed_forward_length": [128, 64] * 3}, "feed_forward_length differs"),
        ("gemma4", {**GEMMA4, "rope.dimension_count_swa": 8}, "RoPE covers only a part"),
        ("gemma4", {**GEMMA4, "attention.head_count_kv": "2"}, "one integer of at least 0"),
        ("deepseek2", {**LATENT, "rope.dimension_count": 24}, "RoPE covers 24 dimensions of heads"),
        ("llama4", {**LLAMA, "attention.sliding_window": 0}, "no attention chunks"),
        ("falcon-h1", {**SSM, "attention.head_count_kv": 2}, "also serves as its head"),
        (
            "granitehybrid",
            {**SCALED_SSM, "ssm.inner_size": 130},
            "ssm.inner_size is 130 for 4 heads",
        ),
        (
            "granitehybrid",
            {**SCALED_SSM, "ssm.inner_size": 100},
            "not a multiple of embedding_length",
        ),
        ("granitehybrid", {**SCALED_SSM, "attention.head_count_kv": [0, 2]}, "for each layer"),
        (
            "granitehybrid",
            {**SCALED_SSM, "rope.scaling.finetuned": 1},
            "finetuned is not a boolean",
        ),
        ("mamba", {**SSM, "ssm.dt_b_c_rms": True}, "state spaces norm their inputs"),
        ("mamba", {**SSM, "ssm.inner_size": 100}, "not a multiple of embedding_length"),
        ("apertus", LLAMA, "xielu.alpha_n does not have 3 numbers"),
    ],
)
def test_what_an_architecture_does_not_have_is_refused(
    architecture: str, fields: dict[str, Any], problem: str
) -> None:
    tensors = [tensor("rope_freqs.weight", np.ones(16))] if architecture == "gemma4" else []
    fields = EXPERTS | fields if architecture == "llama4" else fields
    file = file_of(fields, architecture, *tensors)
    with pytest.raises(UnsupportedModelError, match=problem):
        read_all(file)


def test_values_without_an_effect_are_read() -> None:
    neutral = {"residual_scale": 1.0, "attention.causal": True, "swiglu_clamp_exp": [0.0, 0.0]}
    assert config_of(file_of({**LLAMA, **neutral})) == config_of(file_of(LLAMA))


def test_yarn_has_the_parameters_of_the_file() -> None:
    scaling = {"rope.scaling.type": "yarn", **YARN, "rope.scaling.yarn_beta_fast": 16.0}
    scaling["rope.scaling.yarn_attn_factor"] = 1.5
    rope = config_of(file_of({**LLAMA, **scaling}))["rope_parameters"]
    assert (rope["beta_fast"], rope["attention_factor"]) == (16.0, 1.5)
    assert "beta_slow" not in rope


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "deepseek_v2"),
        ({"expert_gating_func": 1}, "deepseek_v2"),
        ({"expert_gating_func": 2}, "deepseek_v3"),
        ({"vocab_size": 154880}, "deepseek_v3"),
    ],
)
def test_deepseeks_are_told_apart_by_how_they_choose_experts(
    fields: dict[str, Any], expected: str
) -> None:
    config = config_of(file_of({**LATENT, **fields}, "deepseek2"))
    assert config["model_type"] == expected
    assert (config["qk_nope_head_dim"], config["qk_rope_head_dim"]) == (16, 8)
    assert config["q_lora_rank"] is None


def test_windows_and_variants_follow_the_metadata() -> None:
    assert config_of(file_of(LLAMA, "olmo2"))["model_type"] == "olmo2"
    config = config_of(file_of({**LLAMA, "attention.sliding_window": 8}, "olmo2"))
    assert config["model_type"] == "olmo3"
    assert config["layer_types"] == ["sliding_attention"] * 3
    assert config_of(file_of(LLAMA, "exaone4"))["sliding_window"] is None
    config = config_of(
        file_of({**LLAMA, **SCALES, "expert_shared_feed_forward_length": 96}, "granite")
    )
    assert config["intermediate_size"] == 96


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


@pytest.mark.parametrize(("fields", "limit"), [({}, 7.0), ({"swiglu_clamp_exp": 4.5}, 4.5)])
def test_gpt_oss_clamps_its_experts(fields: dict[str, object], limit: float) -> None:
    sizes = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 8}
    gguf = file_of({**LLAMA, **sizes, "attention.sliding_window": 8, **fields}, "gpt-oss")
    assert config_of(gguf)["swiglu_limit"] == limit


def test_messages_of_harmony_end_without_ending_the_answer() -> None:
    """The ids of gpt-oss' generation_config.json are those of these three."""
    tokens = ["<|endoftext|>", "<|return|>", "<|end|>", "<|call|>", "<|start|>"]
    gguf = file_of(LLAMA, "gpt-oss", tokens=tokens, token_type=[3] * 5, eos_token_id=1)
    assert eos_token_ids(gguf) == [1, 0, 3]


def test_answers_of_gemma4_end_with_a_turn_or_a_call() -> None:
    """Its generation_config.json names these, and `<eos>`."""
    tokens = ["<pad>", "<eos>", "<turn|>", "<|tool_response>", "<|turn>"]
    gguf = file_of(LLAMA, "gemma4", tokens=tokens, token_type=[3, 3, 3, 4, 3], eos_token_id=1)
    assert eos_token_ids(gguf) == [1, 2, 3]
