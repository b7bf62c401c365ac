"""Architectures with one feed-forward block in each layer."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from stonechat_models.checkpoint.gguf.architecture import Architecture
from stonechat_models.checkpoint.gguf.metadata import (
    Config,
    has_tensor,
    integer,
    num_blocks,
    numbers,
    positive,
    positive_at,
    refusal,
    size_at,
    window_types,
)
from stonechat_models.checkpoint.gguf.reader import GgufFile
from stonechat_models.checkpoint.gguf.rope import longrope_of

MINICPM_EMBEDDING, MINICPM_DEPTH, MINICPM_BASE = 12.0, 1.4, 256
NO_ROPE_PERIOD = 4
"""After this many layers of SmolLM3 and Llama 4, one has no RoPE."""

_BIASES = {
    "attention_bias": has_tensor("attn_q.bias"),
    "mlp_bias": has_tensor("ffn_up.bias"),
}
GRANITE_SCALES = {
    "attention_multiplier": positive_at("attention.scale"),
    "embedding_multiplier": positive_at("embedding_scale"),
    "residual_multiplier": positive_at("residual_scale"),
    "logits_scaling": positive_at("logit_scale"),
}
GRANITE_EFFECTS = frozenset(("attention.scale", "embedding_scale", "residual_scale", "logit_scale"))
_OUTPUT_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def _smollm3(gguf: GgufFile, config: Config) -> None:
    layers = range(num_blocks(gguf))
    config["no_rope_layers"] = [int((i + 1) % NO_ROPE_PERIOD != 0) for i in layers]


def phi3_windows(gguf: GgufFile, config: Config) -> None:
    """Set the sliding window, and the length that LongRoPE extends."""
    has_window = gguf.value("attention.sliding_window")
    config["sliding_window"] = integer(gguf, "attention.sliding_window") if has_window else None
    config["original_max_position_embeddings"] = config["rope_parameters"].get(
        "original_max_position_embeddings", config["max_position_embeddings"]
    )


def _olmo3(gguf: GgufFile, config: Config) -> None:
    full = config["rope_parameters"]
    theta = positive(gguf, "rope.freq_base_swa", full["rope_theta"])
    local = {"rope_type": "default", "rope_theta": theta}
    config["rope_parameters"] = {"sliding_attention": local, "full_attention": full}
    config["layer_types"] = window_types(gguf, 4)


def _exaone4(gguf: GgufFile, config: Config) -> None:
    """Without windows every layer has RoPE; else only those with a window."""
    if gguf.value("attention.sliding_window"):
        config["sliding_window"] = integer(gguf, "attention.sliding_window")
        config["layer_types"] = window_types(gguf, 4)
    else:
        config["sliding_window"] = None
        config["layer_types"] = ["full_attention"] * num_blocks(gguf)


def _refuse_image_rope(gguf: GgufFile, config: Config) -> None:
    if gguf.value("rope.dimension_sections") is not None:
        raise refusal(gguf, "its query and key rows are in the order of M-RoPE")


def _ministral3(gguf: GgufFile, config: Config) -> None:
    """`mscale` equals `mscale_all_dim` in all published models; the file has the latter."""
    rope = config["rope_parameters"]
    if rope["rope_type"] != "yarn":
        raise refusal(gguf, "its RoPE scaling is not YaRN")
    rope["llama_4_scaling_beta"] = positive(gguf, "attention.temperature_scale")
    rope["mscale"] = rope["mscale_all_dim"] = positive(
        gguf, "rope.scaling.yarn_log_multiplier", 1.0
    )


def _granite(gguf: GgufFile, config: Config) -> None:
    """Granite 4's dense models have the size of their feed-forward blocks under another key."""
    key = "expert_shared_feed_forward_length"
    config["intermediate_size"] = integer(gguf, key, config.get("intermediate_size"))


def _minicpm(gguf: GgufFile, config: Config) -> None:
    """Files from before the scales had keys have those of the published models."""
    layers, hidden_size = config["num_hidden_layers"], config["hidden_size"]
    config["embedding_multiplier"] = positive(gguf, "embedding_scale", MINICPM_EMBEDDING)
    config["residual_multiplier"] = positive(gguf, "residual_scale", MINICPM_DEPTH / layers**0.5)
    config["logits_scaling"] = positive(gguf, "logit_scale", hidden_size / MINICPM_BASE)
    config["attention_multiplier"] = config["head_dim"] ** -0.5


def _xielu(gguf: GgufFile) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the parameters of the activation, which the file has as metadata."""
    for name in ("alpha_n", "alpha_p", "beta", "eps"):
        shape = (1,) if name.startswith("alpha") else ()
        for i, value in enumerate(numbers(gguf, f"xielu.{name}", num_blocks(gguf))):
            target = f"model.layers.{i}.mlp.act_fn.{name}"
            yield target, np.full(shape, value, np.float32)


_LLAMA = Architecture("llama", "LlamaForCausalLM", keys=_BIASES, permuted_rope=True)
_MISTRAL = Architecture(
    "mistral", "MistralForCausalLM", fixed={"sliding_window": None}, permuted_rope=True
)
_QWEN2 = Architecture("qwen2", "Qwen2ForCausalLM", fixed={"use_sliding_window": False})
_QWEN3 = Architecture(
    "qwen3",
    "Qwen3ForCausalLM",
    keys={"attention_bias": has_tensor("attn_q.bias")},
    fixed={"use_sliding_window": False},
)
_OLMO2 = Architecture(
    "olmo2",
    "Olmo2ForCausalLM",
    keys={"attention_bias": has_tensor("attn_q.bias")},
    names=_OUTPUT_NORMS,
)
_OLMO3 = replace(
    _OLMO2,
    model_type="olmo3",
    class_name="Olmo3ForCausalLM",
    keys={**_OLMO2.keys, "sliding_window": size_at("attention.sliding_window")},
    adapt=_olmo3,
)

DENSE: dict[str, Architecture] = {
    "llama": _LLAMA,
    "qwen2": _QWEN2,
    "qwen2vl": _QWEN2,  # its text, whose positions are the same in all sections of M-RoPE
    "qwen3": _QWEN3,
    "qwen3vl": _QWEN3,
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        adapt=phi3_windows,
        rope=longrope_of,
        partial_rope=True,
        names={"ffn_up": "mlp.gate_up_proj"},
    ),
    "granite": Architecture(
        "granite",
        "GraniteForCausalLM",
        keys=_BIASES | GRANITE_SCALES,
        adapt=_granite,
        effects=GRANITE_EFFECTS,
        permuted_rope=True,
    ),
    "internlm2": _LLAMA,
    "exaone": replace(_LLAMA, permuted_rope=False),
    "minicpm": Architecture(
        "granite",
        "GraniteForCausalLM",
        keys=_BIASES,
        adapt=_minicpm,
        effects=GRANITE_EFFECTS - {"attention.scale"},
        rope=longrope_of,
        permuted_rope=True,
    ),
    "olmo2": replace(
        _OLMO2, variants=((lambda g: bool(g.value("attention.sliding_window")), _OLMO3),)
    ),
    "smollm3": Architecture(
        "smollm3",
        "SmolLM3ForCausalLM",
        keys=_BIASES,
        fixed={"use_sliding_window": False, "no_rope_layer_interval": NO_ROPE_PERIOD},
        adapt=_smollm3,
        permuted_rope=True,
    ),
    "mistral3": replace(
        _MISTRAL,
        variants=(
            (
                lambda gguf: gguf.value("attention.temperature_scale") is not None,
                replace(
                    _MISTRAL,
                    model_type="ministral3",
                    class_name="Ministral3ForCausalLM",
                    adapt=_ministral3,
                    effects=frozenset({"attention.temperature_scale"}),
                ),
            ),
        ),
    ),
    "glm4": Architecture(
        "glm4",
        "Glm4ForCausalLM",
        keys={"attention_bias": has_tensor("attn_q.bias")},
        adapt=_refuse_image_rope,
        partial_rope=True,
        names={
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            "ffn_up": "mlp.gate_up_proj",
        },
    ),
    "apertus": Architecture(
        "apertus",
        "ApertusForCausalLM",
        keys={"attention_bias": has_tensor("attn_q.bias")},
        fixed={"hidden_act": "xielu"},
        names={"attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"},
        extra=_xielu,
    ),
    "arcee": Architecture(
        "arcee",
        "ArceeForCausalLM",
        keys=_BIASES,
        fixed={"hidden_act": "relu2"},
        permuted_rope=True,
    ),
    "ernie4_5": Architecture(
        "ernie4_5", "Ernie4_5ForCausalLM", keys={"use_bias": has_tensor("attn_q.bias")}
    ),
    "seed_oss": Architecture(
        "seed_oss",
        "SeedOssForCausalLM",
        keys={**_BIASES, "attention_out_bias": has_tensor("attn_output.bias")},
        names={"post_attention_norm": "post_attention_layernorm"},
    ),
    "exaone4": Architecture("exaone4", "Exaone4ForCausalLM", adapt=_exaone4, names=_OUTPUT_NORMS),
    "hunyuan-dense": Architecture(
        "hunyuan_v1_dense",
        "HunYuanDenseV1ForCausalLM",
        keys={"attention_bias": has_tensor("attn_q.bias")},
        names={
            "attn_q_norm": "self_attn.query_layernorm",
            "attn_k_norm": "self_attn.key_layernorm",
        },
    ),
}
"""The entries by `general.architecture`."""
