"""The architectures of Gemma."""

from dataclasses import replace
from statistics import NormalDist

from stonechat_models.checkpoint.gguf import layouts
from stonechat_models.checkpoint.gguf.architecture import Architecture, Merge
from stonechat_models.checkpoint.gguf.architectures.experts import num_experts
from stonechat_models.checkpoint.gguf.metadata import (
    Config,
    has,
    has_tensor,
    integer,
    num_blocks,
    optional_at,
    per_layer,
    positive,
    positive_at,
    refusal,
    size_at,
    window_types,
)
from stonechat_models.checkpoint.gguf.reader import GgufFile
from stonechat_models.checkpoint.gguf.rope import proportional_of, rope_of
from stonechat_models.checkpoint.hf_config import MAX_FLOAT32

GEMMA2_27B_LAYERS, GEMMA3_27B_LAYERS = 46, 62
LOCAL_THETA, GEMMA3_PATTERN, GEMMA3N_PATTERN = 10000.0, 6, 5

_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LAYER_INPUTS = {
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}
_LAYER_INPUTS_TOP = {
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}


def _gemma(gguf: GgufFile, config: Config, num_layers_27b: int) -> None:
    heads, hidden_size = config["num_attention_heads"], config["hidden_size"]
    is_27b = config["num_hidden_layers"] == num_layers_27b
    config["query_pre_attn_scalar"] = hidden_size // heads if is_27b else config["head_dim"]
    del config["hidden_act"]
    config["sliding_window"] = integer(gguf, "attention.sliding_window")


def _gemma2(gguf: GgufFile, config: Config) -> None:
    _gemma(gguf, config, GEMMA2_27B_LAYERS)
    config["layer_types"] = window_types(gguf, 2)
    config["attn_logit_softcapping"] = positive(gguf, "attn_logit_softcapping", 50.0)
    config["final_logit_softcapping"] = positive(gguf, "final_logit_softcapping", 30.0)


def _gemma3(gguf: GgufFile, config: Config) -> None:
    _gemma(gguf, config, GEMMA3_27B_LAYERS)
    config["layer_types"] = window_types(gguf, GEMMA3_PATTERN)
    config["rope_parameters"] = _two_ropes(gguf)


def _two_ropes(gguf: GgufFile) -> Config:
    theta = positive(gguf, "rope.freq_base_swa", LOCAL_THETA)
    local = {"rope_type": "default", "rope_theta": theta}
    full = rope_of(gguf)
    if gguf.value("rope.freq_base") is None:
        full["rope_theta"] = 1e6
    return {"sliding_attention": local, "full_attention": full}


def _sparsity(gguf: GgufFile) -> list[float]:
    """Return the share of activations that each layer clears.

    The file has the standard normal quantile of each share, which is minus infinity for none.
    """
    key = "activation_sparsity_scale"
    values, count = gguf.value(key), num_blocks(gguf)
    if not isinstance(values, list) or len(values) < count:
        raise refusal(gguf, f"{key} is not one number for each layer")
    quantiles = [v for v in values[:count] if isinstance(v, float) and v <= MAX_FLOAT32]
    if len(quantiles) != count:
        raise refusal(gguf, f"{key} is not one number for each layer")
    return [float(f"{NormalDist().cdf(v):.6g}") for v in quantiles]


def _gemma3n(gguf: GgufFile, config: Config) -> None:
    del config["hidden_act"]
    config["layer_types"] = window_types(gguf, GEMMA3N_PATTERN)
    config["rope_parameters"] = _two_ropes(gguf)
    shapes = {name: gguf.tensors[name].shape for name in gguf.tensors}
    config["laurel_rank"] = shapes.get("blk.0.laurel_l.weight", (0,))[0]
    config["vocab_size_per_layer_input"] = shapes.get("per_layer_token_embd.weight", (0,))[0]
    for name in ("laurel_rank", "vocab_size_per_layer_input"):
        if not config[name]:
            raise refusal(gguf, f"no tensor has the {name}")


def _gemma4(gguf: GgufFile, config: Config) -> None:
    count = config["num_hidden_layers"]
    types = config["layer_types"] = window_types(gguf, 6)
    config["head_dim"] = integer(gguf, "attention.key_length_swa")
    config["global_head_dim"] = integer(gguf, "attention.key_length")
    heads = per_layer(gguf, "attention.head_count_kv")
    local = {n for n, kind in zip(heads, types, strict=True) if kind == "sliding_attention"}
    full = {n for n, kind in zip(heads, types, strict=True) if kind == "full_attention"}
    if len(local) > 1 or len(full) > 1 or types[-1] != "full_attention":
        raise refusal(gguf, "its layers of one kind differ")
    config["num_key_value_heads"] = max(local or full)
    shares = config["attention_k_eq_v"] = any(
        f"blk.{i}.attn_k.weight" in gguf.tensors and f"blk.{i}.attn_v.weight" not in gguf.tensors
        for i in range(count)
    )
    if full and local and full != local and not shares:
        raise refusal(gguf, "its layers of both kinds have other numbers of key heads")
    config["num_global_key_value_heads"] = max(full) if full else None
    sizes = per_layer(gguf, "feed_forward_length")
    config["intermediate_size"], config["use_double_wide_mlp"] = sizes[0], len(set(sizes)) > 1
    first_shared = count - config["num_kv_shared_layers"]
    wide = [
        sizes[0] * (2 if config["use_double_wide_mlp"] and i >= first_shared else 1)
        for i in range(count)
    ]
    if sizes != wide:
        raise refusal(gguf, "feed_forward_length differs between layers")
    local_theta = positive(gguf, "rope.freq_base_swa", 10000.0)
    if integer(gguf, "rope.dimension_count_swa", config["head_dim"]) != config["head_dim"]:
        raise refusal(gguf, "RoPE covers only a part of each head with a window")
    config["rope_parameters"] = {
        "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
        "full_attention": config["rope_parameters"],
    }
    embedding = gguf.tensors.get("per_layer_token_embd.weight")
    if embedding is not None:
        config["vocab_size_per_layer_input"] = embedding.shape[0]
    del config["hidden_act"]
    config["enable_moe_block"] = has(gguf, "ffn_gate_inp.weight")
    if config["enable_moe_block"]:
        config["num_experts"] = num_experts(gguf)
        config["top_k_experts"] = integer(gguf, "expert_used_count")
        config["moe_intermediate_size"] = integer(gguf, "expert_feed_forward_length")


_GEMMA3 = Architecture(
    "gemma3_text",
    "Gemma3ForCausalLM",
    keys={"final_logit_softcapping": optional_at("final_logit_softcapping")},
    fixed={
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attn_logit_softcapping": None,
    },
    adapt=_gemma3,
    effects=frozenset({"final_logit_softcapping"}),
    names=_NAMES,
    norm_offset=1.0,
)
_EMBEDDING = replace(
    _GEMMA3,
    class_name="Gemma3TextModel",
    fixed={**_GEMMA3.fixed, "use_bidirectional_attention": True},
    effects=frozenset(),
    is_encoder=True,
    dense=("dense_2.weight", "dense_3.weight"),
)
_OLLAMA_EMBEDDING = replace(
    _EMBEDDING,
    top_names={"norm": "model.norm"},
    dense=("dense.0.weight", "dense.1.weight"),
)
GEMMA: dict[str, Architecture] = {
    "gemma": Architecture(
        "gemma",
        "GemmaForCausalLM",
        fixed={"hidden_act": "gelu_pytorch_tanh", "attention_bias": False},
        norm_offset=1.0,
    ),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        fixed={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
        adapt=_gemma2,
        effects=frozenset({"attn_logit_softcapping", "final_logit_softcapping"}),
        names=_NAMES,
        norm_offset=1.0,
    ),
    # Ollama's files of EmbeddingGemma are named `gemma3` too.
    "gemma3": replace(
        _GEMMA3,
        variants=((lambda gguf: "dense.0.weight" in gguf.tensors, _OLLAMA_EMBEDDING),),
    ),
    "gemma-embedding": _EMBEDDING,
    "gemma3n": Architecture(
        "gemma3n_text",
        "Gemma3nForCausalLM",
        keys={
            "sliding_window": size_at("attention.sliding_window"),
            "num_kv_shared_layers": size_at("attention.shared_kv_layers", least=0),
            "hidden_size_per_layer_input": size_at("embedding_length_per_layer_input"),
            "altup_active_idx": size_at("altup.active_idx", least=0),
            "altup_num_inputs": size_at("altup.num_inputs", least=2),
            "altup_correct_scale": has_tensor("altup_correct_scale.weight"),
            "activation_sparsity_pattern": _sparsity,
            "final_logit_softcapping": positive_at("final_logit_softcapping", 30.0),
        },
        fixed={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
        adapt=_gemma3n,
        effects=frozenset({"final_logit_softcapping"}),
        names={
            **_NAMES,
            **_LAYER_INPUTS,
            "laurel_l": "laurel.linear_left",
            "laurel_r": "laurel.linear_right",
            "laurel_post_norm": "laurel.post_laurel_norm",
            "altup_correct_coef": "altup.correction_coefs",
            "altup_correct_scale.weight": "altup.correct_output_scale",
            "altup_predict_coef": "altup.prediction_coefs",
            "altup_router": "altup.modality_router",
            "altup_router_norm": "altup.router_norm",
        },
        top_names={
            **_LAYER_INPUTS_TOP,
            "altup_proj": "model.altup_projections.{}",
            "altup_unembd_proj": "model.altup_unembed_projections.{}",
        },
    ),
    "gemma4": Architecture(
        "gemma4_text",
        "Gemma4ForCausalLM",
        keys={
            "sliding_window": size_at("attention.sliding_window"),
            "num_kv_shared_layers": size_at("attention.shared_kv_layers", 0, least=0),
            "hidden_size_per_layer_input": size_at("embedding_length_per_layer_input", 0, least=0),
            "final_logit_softcapping": optional_at("final_logit_softcapping"),
        },
        fixed={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
        adapt=_gemma4,
        effects=frozenset({"final_logit_softcapping"}),
        rope=proportional_of,
        own_heads=True,
        names={
            **_NAMES,
            "post_ffw_norm_1": "post_feedforward_layernorm_1",
            "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
            "post_ffw_norm_2": "post_feedforward_layernorm_2",
            "layer_output_scale.weight": "layer_scalar",
            **_LAYER_INPUTS,
            "ffn_gate_inp": "router.proj",
            "ffn_gate_inp.scale": "router.scale",
            "ffn_down_exps.scale": "router.per_expert_scale",
            "ffn_gate_up_exps.weight": "experts.gate_up_proj",
            "ffn_down_exps.weight": "experts.down_proj",
        },
        top_names=_LAYER_INPUTS_TOP,
        merges=(
            Merge(
                "experts.gate_up_proj",
                ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
                layouts.rows_joined(1),
            ),
        ),
    ),
}
"""The entries by `general.architecture`."""
