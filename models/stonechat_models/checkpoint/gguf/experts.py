"""Architectures with mixtures of experts."""

from dataclasses import replace

from stonechat_models.checkpoint.gguf import layouts
from stonechat_models.checkpoint.gguf.architecture import Architecture, Merge
from stonechat_models.checkpoint.gguf.dense import GRANITE_EFFECTS, GRANITE_SCALES
from stonechat_models.checkpoint.gguf.metadata import (
    Config,
    flag,
    flag_at,
    has,
    has_tensor,
    integer,
    number,
    positive,
    positive_at,
    refusal,
    size_at,
    window_types,
)
from stonechat_models.checkpoint.gguf.reader import GgufFile
from stonechat_models.checkpoint.hf_config import MAX_EXPERTS

SIGMOID = 2
"""The value of `expert_gating_func` for independent scores of experts."""
GLM_FLASH_VOCAB = 154880


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

_ROUTED = {
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
ROUTED_EFFECTS = frozenset({"expert_weights_scale", "expert_gating_func"})
_SHARED_NAMES = {
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


def _deepseek(gguf: GgufFile, config: Config) -> None:
    """Files with `key_length_mla` store the heads' keys and values apart; older ones do not."""
    is_split = gguf.value("attention.key_length_mla") is not None
    rotary = integer(gguf, "rope.dimension_count")
    key_size = integer(gguf, "attention.key_length" + ("_mla" if is_split else ""))
    if key_size <= rotary:
        raise refusal(gguf, f"RoPE covers {rotary} dimensions of heads of size {key_size}")
    config["qk_rope_head_dim"], config["qk_nope_head_dim"] = rotary, key_size - rotary
    config["v_head_dim"] = integer(gguf, "attention.value_length" + ("_mla" if is_split else ""))
    config["num_key_value_heads"] = config["num_attention_heads"]
    config["q_lora_rank"] = integer(gguf, "attention.q_lora_rank", 0, least=0) or None
    del config["head_dim"]
    rope = config["rope_parameters"]
    scale = number(gguf, "rope.scaling.yarn_log_multiplier", 0.0)
    if rope["rope_type"] == "yarn" and scale:
        # The file has a tenth of `mscale_all_dim`, which equals `mscale` in published models.
        rope["mscale"] = rope["mscale_all_dim"] = float(f"{10 * scale:.6g}")
    config["rope_interleave"] = True
    if config["model_type"] == "deepseek_v2":
        config["topk_method"] = "group_limited_greedy" if config["n_group"] > 1 else "greedy"


def _mistral4(gguf: GgufFile, config: Config) -> None:
    _deepseek(gguf, config)
    rope, nope = config["qk_rope_head_dim"], config["qk_nope_head_dim"]
    config["rope_parameters"]["partial_rotary_factor"] = rope / (rope + nope)
    config["rope_parameters"]["llama_4_scaling_beta"] = positive(
        gguf, "attention.temperature_scale"
    )


def _has_no_experts(gguf: GgufFile) -> bool:
    return not gguf.value("expert_count")


def _is_deepseek_v3(gguf: GgufFile) -> bool:
    """Files of GLM-4.7-Flash do not name how experts are chosen."""
    function = integer(gguf, "expert_gating_func", 0, least=0)
    is_flash = not function and gguf.value("vocab_size") == GLM_FLASH_VOCAB
    return function == SIGMOID or is_flash or has(gguf, "exp_probs_b.bias")


def _granite_moe(gguf: GgufFile, config: Config) -> None:
    shared = integer(gguf, "expert_shared_feed_forward_length", 0, least=0)
    if shared:
        config["model_type"] = "granitemoeshared"
        config["architectures"] = ["GraniteMoeSharedForCausalLM"]
        config["shared_intermediate_size"] = shared


def _afmoe(gguf: GgufFile, config: Config) -> None:
    config["layer_types"] = window_types(gguf, 4)
    if not flag(gguf, "expert_weights_norm", True):
        raise refusal(gguf, "the weights of its experts do not add up to 1")


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
_DEEPSEEK = Architecture(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    keys={
        **_ROUTED,
        "kv_lora_rank": size_at("attention.kv_lora_rank"),
        "attention_bias": has_tensor("attn_q_a.bias"),
    },
    adapt=_deepseek,
    effects=ROUTED_EFFECTS,
    own_heads=True,
    names={
        **_SHARED_NAMES,
        "attn_q_a": "self_attn.q_a_proj",
        "attn_q_b": "self_attn.q_b_proj",
        "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm",
        "attn_kv_b": "self_attn.kv_b_proj",
    },
    merges=(
        Merge(
            "self_attn.kv_b_proj.weight",
            ("attn_k_b.weight", "attn_v_b.weight"),
            layouts.latent_heads,
        ),
    ),
)
_YOUTU = replace(
    _DEEPSEEK,
    model_type="youtu",
    class_name="YoutuForCausalLM",
    keys={key: read for key, read in _DEEPSEEK.keys.items() if key not in _ROUTED},
    fixed={"pad_token_id": None},  # transformers' code clears the row of this token
)
_DEEPSEEK_V3 = replace(_DEEPSEEK, model_type="deepseek_v3", class_name="DeepseekV3ForCausalLM")
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
        merges=(
            Merge(
                "mlp.experts.gate_up_proj",
                ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
                layouts.rows_joined(1),
            ),
        ),
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
        names={**_SHARED_NAMES, "exp_probs_b.bias": "mlp.moe_statics.e_score_correction_bias"},
        layouts={"exp_probs_b.bias": layouts.row},
    ),
    "glm4moe": Architecture(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        keys={
            **_ROUTED,
            "attention_bias": has_tensor("attn_q.bias"),
            "use_qk_norm": has_tensor("attn_q_norm.weight"),
        },
        effects=ROUTED_EFFECTS,
        partial_rope=True,
        names={**_SHARED_NAMES, "post_attention_norm": "post_attention_layernorm"},
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
        fixed={"mup_enabled": True, "attention_bias": False},
        adapt=_afmoe,
        effects=ROUTED_EFFECTS,
        names={
            **_SHARED_NAMES,
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
        keys={**_ROUTED, "attention_bias": has_tensor("attn_q.bias")},
        fixed={"sliding_window": None},
        effects=ROUTED_EFFECTS,
        names=_SHARED_NAMES,
    ),
    "deepseek2": replace(
        _DEEPSEEK, variants=((_has_no_experts, _YOUTU), (_is_deepseek_v3, _DEEPSEEK_V3))
    ),
    "mistral4": replace(
        _DEEPSEEK,
        model_type="mistral4",
        class_name="Mistral4ForCausalLM",
        adapt=_mistral4,
        effects=ROUTED_EFFECTS | {"attention.temperature_scale"},
        names={**_DEEPSEEK.names, "ffn_down_exps.weight": "mlp.experts.down_proj"},
        merges=(
            *_DEEPSEEK.merges,
            Merge(
                "mlp.experts.gate_up_proj",
                ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
                layouts.rows_joined(1),
            ),
        ),
    ),
    "minimax-m2": Architecture(
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        keys={**LOCAL_EXPERTS, "intermediate_size": size_at("expert_feed_forward_length")},
        effects=frozenset({"expert_gating_func"}),
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
