"""Architectures with delta nets or short convolutions beside layers of attention."""

from stonechat_models.checkpoint.gguf import layouts
from stonechat_models.checkpoint.gguf.architecture import SIGMOID, Architecture, Merge
from stonechat_models.checkpoint.gguf.architectures.experts import (
    EVERY_LAYER,
    EXPERTS,
    SHARED_EXPERT,
    SHARED_EXPERT_LAYOUTS,
    SHARED_EXPERT_NAMES,
    w_experts,
)
from stonechat_models.checkpoint.gguf.metadata import (
    Config,
    attention_layers,
    has_tensor,
    integer,
    num_blocks,
    refusal,
    size_at,
)
from stonechat_models.checkpoint.gguf.reader import GgufFile

MROPE_AXES = 3
ATTENTION, STATE = "full_attention", "linear_attention"


def _lfm2(gguf: GgufFile, config: Config) -> None:
    config["layer_types"] = attention_layers(gguf, "conv")


def _delta_net(gguf: GgufFile, config: Config) -> None:
    period, heads = integer(gguf, "full_attention_interval", 4), config["linear_num_value_heads"]
    layers = range(num_blocks(gguf))
    config["layer_types"] = [STATE if (i + 1) % period else ATTENTION for i in layers]
    inner = integer(gguf, "ssm.inner_size")
    if inner % heads:
        raise refusal(gguf, f"ssm.inner_size is {inner} for {heads} heads")
    config["linear_value_head_dim"] = inner // heads
    sections = gguf.value("rope.dimension_sections")
    if isinstance(sections, list):
        rope = config["rope_parameters"]
        rope["mrope_section"], rope["mrope_interleaved"] = sections[:MROPE_AXES], True


_DELTA_NET_KEYS = {
    "linear_conv_kernel_dim": size_at("ssm.conv_kernel"),
    "linear_key_head_dim": size_at("ssm.state_size"),
    "linear_num_key_heads": size_at("ssm.group_count"),
    "linear_num_value_heads": size_at("ssm.time_step_rank"),
    "attention_bias": has_tensor("attn_q.bias"),
}
_DELTA_NET_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "attn_gate": "linear_attn.in_proj_z",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
    "ssm_a": "linear_attn.A_log",
    "ssm_dt.bias": "linear_attn.dt_bias",
}
_GROUPED = {
    "attn_gate.weight": layouts.grouped_values,
    "attn_qkv.weight": layouts.grouped_tail,
    "ssm_alpha.weight": layouts.grouped_values,
    "ssm_beta.weight": layouts.grouped_values,
    "ssm_conv1d.weight": layouts.grouped_kernel,
    "ssm_out.weight": layouts.grouped_inputs,
    "ssm_a": layouts.grouped_decays,
    "ssm_dt.bias": layouts.grouped_values,
}
_SHARED_ROUTED = {**EXPERTS, **SHARED_EXPERT}
_LFM2_NAMES = {
    "attn_norm": "operator_norm",
    "ffn_norm": "ffn_norm",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
    "ffn_gate_inp": "feed_forward.gate",
    "exp_probs_b.bias": "feed_forward.expert_bias",
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
    **w_experts("feed_forward"),
}
_LFM2_KEYS = {
    "conv_L_cache": size_at("shortconv.l_cache"),
    "conv_bias": has_tensor("shortconv.in_proj.bias"),
}
_LFM2_TOP = {"token_embd_norm": "model.embedding_norm", "output_norm": "model.embedding_norm"}
_LFM2_LAYOUTS = {"shortconv.conv.weight": layouts.conv_kernel}
LINEAR_ATTENTION: dict[str, Architecture] = {
    "lfm2": Architecture(
        "lfm2",
        "Lfm2ForCausalLM",
        keys=_LFM2_KEYS,
        fixed={"block_auto_adjust_ff_dim": False},
        adapt=_lfm2,
        own_heads=True,
        eps="norm_eps",
        names=_LFM2_NAMES,
        top_names=_LFM2_TOP,
        layouts=_LFM2_LAYOUTS,
    ),
    "lfm2moe": Architecture(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        keys={
            **_LFM2_KEYS,
            **EXPERTS,
            "num_dense_layers": size_at("leading_dense_block_count", 0, least=0),
            "use_expert_bias": has_tensor("exp_probs_b.bias"),
        },
        fixed={"norm_topk_prob": True, "routed_scaling_factor": 1.0},
        adapt=_lfm2,
        gating=SIGMOID,
        own_heads=True,
        eps="norm_eps",
        names=_LFM2_NAMES,
        top_names=_LFM2_TOP,
        layouts=_LFM2_LAYOUTS,
    ),
    "qwen35": Architecture(
        "qwen3_5_text",
        "Qwen3_5ForCausalLM",
        keys=_DELTA_NET_KEYS,
        adapt=_delta_net,
        partial_rope=True,
        names=_DELTA_NET_NAMES,
        layouts=_GROUPED,
        norm_offset=1.0,
        plain_norms=frozenset({"ssm_norm.weight"}),
    ),
    "qwen35moe": Architecture(
        "qwen3_5_moe_text",
        "Qwen3_5MoeForCausalLM",
        keys={**_DELTA_NET_KEYS, **_SHARED_ROUTED},
        adapt=_delta_net,
        partial_rope=True,
        names={**_DELTA_NET_NAMES, **SHARED_EXPERT_NAMES},
        layouts={**_GROUPED, **SHARED_EXPERT_LAYOUTS},
        norm_offset=1.0,
        plain_norms=frozenset({"ssm_norm.weight"}),
    ),
    "qwen3next": Architecture(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        keys={**_DELTA_NET_KEYS, **_SHARED_ROUTED},
        fixed={"norm_topk_prob": True, **EVERY_LAYER},
        adapt=_delta_net,
        partial_rope=True,
        names={
            **{k: v for k, v in _DELTA_NET_NAMES.items() if k not in ("ssm_alpha", "ssm_beta")},
            **SHARED_EXPERT_NAMES,
            "ssm_in": "linear_attn.in_proj_qkvz",
            "ssm_ba": "linear_attn.in_proj_ba",
        },
        merges=(
            Merge(
                "linear_attn.in_proj_qkvz.weight",
                ("attn_qkv.weight", "attn_gate.weight"),
                layouts.queries_to_gates,
            ),
        ),
        layouts={
            "ssm_conv1d.weight": layouts.conv_kernel,
            "ssm_a": layouts.log_of_negated,
            **SHARED_EXPERT_LAYOUTS,
        },
        norm_offset=1.0,
        plain_norms=frozenset({"ssm_norm.weight"}),
    ),
}
"""The entries by `general.architecture`."""
