"""Architectures with mixtures of experts."""

from dataclasses import replace

from stonechat_models.checkpoint.gguf import layouts
from stonechat_models.checkpoint.gguf.architecture import SIGMOID, Architecture, Merge
from stonechat_models.checkpoint.gguf.architectures.dense import (
    GRANITE_EFFECTS,
    GRANITE_SCALES,
    phi3_windows,
)
from stonechat_models.checkpoint.gguf.metadata import (
    Config,
    expert_layers,
    flag_at,
    has_tensor,
    integer,
    num_blocks,
    per_layer,
    positive,
    positive_at,
    refusal,
    size_at,
    window_types,
)
from stonechat_models.checkpoint.gguf.reader import GgufFile
from stonechat_models.checkpoint.gguf.rope import longrope_of
from stonechat_models.checkpoint.hf_config import MAX_EXPERTS

PHIMOE_MSCALE = 1.243163121016122
"""What the published models scale rotated queries and keys by. Their files do not name it."""


def num_experts(gguf: GgufFile) -> int:
    """Return the number of experts."""
    return integer(gguf, "expert_count", limit=MAX_EXPERTS)


USED = {"num_experts_per_tok": size_at("expert_used_count")}
LOCAL_EXPERTS = {"num_local_experts": num_experts, **USED}
EXPERTS = {
    "num_experts": num_experts,
    **USED,
    "moe_intermediate_size": size_at("expert_feed_forward_length"),
}
SHARED_EXPERT = {"shared_expert_intermediate_size": size_at("expert_shared_feed_forward_length")}
SHARED_EXPERT_NAMES = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
SHARED_EXPERT_LAYOUTS = {"ffn_gate_inp_shexp.weight": layouts.row}
EVERY_LAYER = {"decoder_sparse_step": 1, "mlp_only_layers": []}

ROUTED = {
    "n_routed_experts": num_experts,
    **USED,
    "moe_intermediate_size": size_at("expert_feed_forward_length"),
    "n_shared_experts": size_at("expert_shared_count", 0, least=0),
    "n_group": size_at("expert_group_count", 1),
    "topk_group": size_at("expert_group_used_count", 1),
    "first_k_dense_replace": size_at("leading_dense_block_count", 0, least=0),
    "routed_scaling_factor": positive_at("expert_weights_scale", 1.0),
    "norm_topk_prob": flag_at("expert_weights_norm", False),
}
ROUTED_EFFECTS = frozenset({"expert_weights_scale"})
SHARED_NAMES = {
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
W_EXPERTS = {
    "ffn_gate_exps": "{prefix}.experts.{{}}.w1",
    "ffn_up_exps": "{prefix}.experts.{{}}.w3",
    "ffn_down_exps": "{prefix}.experts.{{}}.w2",
}


def w_experts(prefix: str) -> dict[str, str]:
    """Return the names of experts' projections that transformers calls w1, w2 and w3."""
    return {name: target.format(prefix=prefix) for name, target in W_EXPERTS.items()}


def _granite_moe(gguf: GgufFile, config: Config) -> None:
    shared = integer(gguf, "expert_shared_feed_forward_length", 0, least=0)
    if shared:
        config["model_type"] = "granitemoeshared"
        config["architectures"] = ["GraniteMoeSharedForCausalLM"]
        config["shared_intermediate_size"] = shared


def _afmoe(gguf: GgufFile, config: Config) -> None:
    config["layer_types"] = window_types(gguf, 4)


def _phimoe(gguf: GgufFile, config: Config) -> None:
    phi3_windows(gguf, config)
    rope = config["rope_parameters"]
    if rope["rope_type"] == "longrope":
        rope["short_mscale"] = rope["long_mscale"] = PHIMOE_MSCALE


def _exaone_moe(gguf: GgufFile, config: Config) -> None:
    config["layer_types"] = window_types(gguf, 4)


def _mimo2(gguf: GgufFile, config: Config) -> None:
    """Layers with a window have twice as many key heads, and frequencies of their own."""
    types = config["layer_types"] = window_types(gguf, 6)
    config["mlp_layer_types"] = expert_layers(gguf)
    heads = per_layer(gguf, "attention.head_count_kv")
    full = {n for n, kind in zip(heads, types, strict=True) if kind == "full_attention"}
    local = {n for n, kind in zip(heads, types, strict=True) if kind == "sliding_attention"}
    count = config["num_key_value_heads"] = max(full, default=max(local, default=0) // 2)
    if full - {count} or local - {2 * count}:
        raise refusal(gguf, "attention.head_count_kv is not twice as large in layers with a window")
    config["v_head_dim"] = integer(gguf, "attention.value_length")
    share = integer(gguf, "rope.dimension_count") / config["head_dim"]
    rope = {**config["rope_parameters"], "partial_rotary_factor": share}
    if share > 1 or rope["rope_type"] != "default":
        raise refusal(gguf, "RoPE scaling of this architecture is not supported")
    theta = positive(gguf, "rope.freq_base_swa")
    local_rope = {**rope, "rope_theta": theta}
    config["rope_parameters"] = {"full_attention": rope, "sliding_attention": local_rope}


def _mellum(gguf: GgufFile, config: Config, is_first_full: bool = False) -> None:
    layers, full = num_blocks(gguf), config["rope_parameters"]
    config["layer_types"] = ["full_attention"] * layers
    if gguf.value("attention.sliding_window"):
        config["sliding_window"] = integer(gguf, "attention.sliding_window")
        config["layer_types"] = window_types(gguf, 4, is_first_full)
    theta = positive(gguf, "rope.freq_base_swa", full["rope_theta"])
    local = {"rope_type": "default", "rope_theta": theta}
    config["rope_parameters"] = {"full_attention": full, "sliding_attention": local}


def _laguna(gguf: GgufFile, config: Config) -> None:
    """Layers with a window may have more heads, and rotate them whole and without scaling."""
    _mellum(gguf, config, is_first_full=True)
    heads = config["num_attention_heads_per_layer"] = per_layer(gguf, "attention.head_count")
    size, gate = config["head_dim"], gguf.tensors.get("blk.0.attn_gate.weight")
    rows = 0 if gate is None else gate.shape[0]
    if rows not in (heads[0], heads[0] * size):
        raise refusal(gguf, f"attn_gate does not have the rows of {heads[0]} heads")
    config["gating"] = True if rows == heads[0] else "per-element"
    for kind, suffix in (("full_attention", ""), ("sliding_attention", "_swa")):
        share = integer(gguf, f"rope.dimension_count{suffix}", size) / size
        config["rope_parameters"][kind]["partial_rotary_factor"] = share
        if share > 1:
            raise refusal(gguf, f"rope.dimension_count{suffix} is larger than a head")


MIXTRAL = Architecture(
    "mixtral",
    "MixtralForCausalLM",
    keys=LOCAL_EXPERTS,
    fixed={"sliding_window": None},
    names={"ffn_gate_inp": "mlp.gate", **w_experts("mlp")},
    permuted_rope=True,
)
_QWEN3_MOE = Architecture(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    keys={**EXPERTS, "attention_bias": has_tensor("attn_q.bias")},
    fixed={"use_sliding_window": False, "norm_topk_prob": True, **EVERY_LAYER},
)
STACKED_EXPERTS = Merge(
    "mlp.experts.gate_up_proj",
    ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    layouts.rows_joined(1),
)
GRANITE_SHARED = Merge(
    "shared_mlp.input_linear.weight",
    ("ffn_gate_shexp.weight", "ffn_up_shexp.weight"),
    layouts.rows_joined(0),
)
GRANITE_EXPERTS = Merge(
    "block_sparse_moe.input_linear.weight",
    ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    layouts.rows_joined(1),
)
GRANITE_NAMES = {
    "ffn_gate_inp": "block_sparse_moe.router.layer",
    "ffn_down_exps.weight": "block_sparse_moe.output_linear.weight",
    "ffn_down_shexp": "shared_mlp.output_linear",
}

MIXTURES: dict[str, Architecture] = {
    "mellum": Architecture(
        "mellum",
        "MellumForCausalLM",
        keys={**EXPERTS, "attention_bias": has_tensor("attn_q.bias")},
        fixed={"norm_topk_prob": True},
        adapt=_mellum,
    ),
    "laguna": Architecture(
        "laguna",
        "LagunaForCausalLM",
        keys={
            **EXPERTS,
            **SHARED_EXPERT,
            "mlp_layer_types": expert_layers,
            "moe_routed_scaling_factor": positive_at("expert_weights_scale", 1.0),
            "attention_bias": has_tensor("attn_q.bias"),
        },
        fixed={"norm_topk_prob": True},
        adapt=_laguna,
        effects=ROUTED_EFFECTS,
        gating=SIGMOID,
        own_heads=True,
        names={
            **SHARED_EXPERT_NAMES,
            "attn_gate": "self_attn.g_proj",
            "exp_probs_b.bias": "mlp.experts.e_score_correction_bias",
        },
    ),
    "phimoe": Architecture(
        "phimoe",
        "PhimoeForCausalLM",
        keys={
            **LOCAL_EXPERTS,
            "attention_bias": has_tensor("attn_q.bias"),
            "lm_head_bias": lambda gguf: "output.bias" in gguf.tensors,
        },
        adapt=_phimoe,
        rope=longrope_of,
        names={"ffn_gate_inp": "block_sparse_moe.gate", **w_experts("block_sparse_moe")},
    ),
    "exaone-moe": Architecture(
        "exaone_moe",
        "ExaoneMoeForCausalLM",
        keys={
            **EXPERTS,
            "num_shared_experts": size_at("expert_shared_count"),
            "mlp_layer_types": expert_layers,
            "n_group": size_at("expert_group_count", 1),
            "topk_group": size_at("expert_group_used_count", 1),
            "routed_scaling_factor": positive_at("expert_weights_scale", 1.0),
            "norm_topk_prob": flag_at("expert_weights_norm", False),
            "sliding_window": size_at("attention.sliding_window"),
        },
        adapt=_exaone_moe,
        effects=ROUTED_EFFECTS,
        gating=SIGMOID,
        names={**SHARED_NAMES, "exp_probs_b.bias": "mlp.e_score_correction_bias"},
    ),
    "mimo2": Architecture(
        "mimo_v2_flash",
        "MiMoV2FlashForCausalLM",
        keys={
            "n_routed_experts": num_experts,
            **USED,
            "moe_intermediate_size": size_at("expert_feed_forward_length"),
            "n_group": size_at("expert_group_count", 1),
            "topk_group": size_at("expert_group_used_count", 1),
            "routed_scaling_factor": positive_at("expert_weights_scale", 1.0),
            "norm_topk_prob": flag_at("expert_weights_norm", True),
            "sliding_window": size_at("attention.sliding_window"),
            "attention_value_scale": positive_at("attention.value_scale"),
            "attention_bias": has_tensor("attn_q.bias"),
        },
        adapt=_mimo2,
        effects=ROUTED_EFFECTS | {"attention.value_scale"},
        gating=SIGMOID,
        own_heads=True,
        names={**SHARED_NAMES, "attn_sinks.weight": "self_attn.attention_sink_bias"},
    ),
    "qwen2moe": Architecture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        keys={**EXPERTS, **SHARED_EXPERT, "qkv_bias": has_tensor("attn_q.bias")},
        fixed={"use_sliding_window": False, "norm_topk_prob": False, **EVERY_LAYER},
        names=SHARED_EXPERT_NAMES,
        layouts=SHARED_EXPERT_LAYOUTS,
    ),
    "qwen3moe": _QWEN3_MOE,
    # Beside a vision part, transformers takes all experts of a layer in one parameter.
    "qwen3vlmoe": replace(
        _QWEN3_MOE,
        names={"ffn_down_exps.weight": "mlp.experts.down_proj"},
        merges=(STACKED_EXPERTS,),
    ),
    "olmoe": Architecture(
        "olmoe",
        "OlmoeForCausalLM",
        keys={"num_experts": num_experts, **USED},
        fixed={"norm_topk_prob": False},
    ),
    "hunyuan-moe": Architecture(
        "hunyuan_v1_moe",
        "HunYuanMoEV1ForCausalLM",
        keys={
            "num_experts": num_experts,
            "moe_topk": size_at("expert_used_count"),
            "intermediate_size": size_at("expert_feed_forward_length"),
            "attention_bias": has_tensor("attn_q.bias"),
        },
        names={
            "attn_q_norm": "self_attn.query_layernorm",
            "attn_k_norm": "self_attn.key_layernorm",
            "ffn_gate_inp": "mlp.gate.wg",
            "ffn_gate_shexp": "mlp.shared_mlp.gate_proj",
            "ffn_up_shexp": "mlp.shared_mlp.up_proj",
            "ffn_down_shexp": "mlp.shared_mlp.down_proj",
        },
    ),
    "ernie4_5-moe": Architecture(
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        keys={
            "moe_num_experts": num_experts,
            "moe_k": size_at("expert_used_count"),
            "moe_intermediate_size": size_at("expert_feed_forward_length"),
            "moe_num_shared_experts": size_at("expert_shared_count", 0, least=0),
            "moe_layer_start_index": size_at("leading_dense_block_count", least=0),
            "moe_layer_interval": size_at("interleave_moe_layer_step"),
            "use_bias": has_tensor("attn_q.bias"),
        },
        fixed={"moe_layer_end_index": -1},
        names={**SHARED_NAMES, "exp_probs_b.bias": "mlp.moe_statics.e_score_correction_bias"},
        layouts={"exp_probs_b.bias": layouts.row},
    ),
    "glm4moe": Architecture(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        keys={
            **ROUTED,
            "attention_bias": has_tensor("attn_q.bias"),
            "use_qk_norm": has_tensor("attn_q_norm.weight"),
        },
        effects=ROUTED_EFFECTS,
        gating=SIGMOID,
        partial_rope=True,
        names={**SHARED_NAMES, "post_attention_norm": "post_attention_layernorm"},
    ),
    "afmoe": Architecture(
        "afmoe",
        "AfmoeForCausalLM",
        keys={
            **EXPERTS,
            "num_shared_experts": size_at("expert_shared_count", 0, least=0),
            "num_dense_layers": size_at("leading_dense_block_count", 0, least=0),
            "route_scale": positive_at("expert_weights_scale", 1.0),
            "sliding_window": size_at("attention.sliding_window"),
        },
        fixed={"mup_enabled": True, "attention_bias": False, "norm_topk_prob": True},
        adapt=_afmoe,
        effects=ROUTED_EFFECTS,
        gating=SIGMOID,
        names={
            **SHARED_NAMES,
            "attn_gate": "self_attn.gate_proj",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_mlp_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            "ffn_gate_inp": "mlp.router.gate",
            "exp_probs_b.bias": "mlp.expert_bias",
        },
    ),
    "dots1": Architecture(
        "dots1",
        "Dots1ForCausalLM",
        keys={**ROUTED, "attention_bias": has_tensor("attn_q.bias")},
        fixed={"sliding_window": None},
        effects=ROUTED_EFFECTS,
        gating=SIGMOID,
        names=SHARED_NAMES,
    ),
    "minimax-m2": Architecture(
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        keys={**LOCAL_EXPERTS, "intermediate_size": size_at("expert_feed_forward_length")},
        gating=SIGMOID,
        partial_rope=True,
        names={
            "ffn_gate_inp": "mlp.gate",
            "exp_probs_b.bias": "mlp.e_score_correction_bias",
            **w_experts("mlp"),
        },
    ),
    "granitemoe": Architecture(
        "granitemoe",
        "GraniteMoeForCausalLM",
        keys={**GRANITE_SCALES, **LOCAL_EXPERTS, "attention_bias": has_tensor("attn_q.bias")},
        adapt=_granite_moe,
        effects=GRANITE_EFFECTS,
        names=GRANITE_NAMES,
        merges=(GRANITE_EXPERTS, GRANITE_SHARED),
        permuted_rope=True,
    ),
}
"""The entries by `general.architecture`."""
