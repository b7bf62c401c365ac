"""Architectures whose experts transformers stores in forms of their own."""

from stonechat_models.checkpoint.gguf import layouts
from stonechat_models.checkpoint.gguf.architecture import (
    SIGMOID,
    SOFTMAX_OF_CHOSEN,
    Architecture,
    Merge,
)
from stonechat_models.checkpoint.gguf.architectures.dense import NO_ROPE_PERIOD
from stonechat_models.checkpoint.gguf.architectures.experts import LOCAL_EXPERTS
from stonechat_models.checkpoint.gguf.metadata import (
    Config,
    has_tensor,
    num_blocks,
    positive_at,
    refusal,
    size_at,
)
from stonechat_models.checkpoint.gguf.reader import GgufFile

LLAMA4_CHUNK, MAVERICK_EXPERTS = 8192, 128


def _gpt_oss(gguf: GgufFile, config: Config) -> None:
    config["layer_types"] = [
        "full_attention" if i % 2 else "sliding_attention" for i in range(num_blocks(gguf))
    ]
    if config["rope_parameters"]["rope_type"] == "yarn":
        config["rope_parameters"]["truncate"] = False


def _llama4(gguf: GgufFile, config: Config) -> None:
    if gguf.value("attention.sliding_window") == 0:
        raise refusal(gguf, "its layers have no attention chunks")
    config["use_qk_norm"] = config["num_local_experts"] != MAVERICK_EXPERTS
    step = config["interleave_moe_layer_step"]
    config["moe_layers"] = list(range(step - 1, config["num_hidden_layers"], step))


OWN_EXPERTS: dict[str, Architecture] = {
    "gpt-oss": Architecture(
        "gpt_oss",
        "GptOssForCausalLM",
        keys={
            **LOCAL_EXPERTS,
            "intermediate_size": size_at("expert_feed_forward_length"),
            "sliding_window": size_at("attention.sliding_window"),
            "swiglu_limit": positive_at("swiglu_clamp_exp", 7.0),
        },
        fixed={"attention_bias": True},
        adapt=_gpt_oss,
        effects=frozenset({"swiglu_clamp_exp"}),
        gating=SOFTMAX_OF_CHOSEN,
        names={
            "post_attention_norm": "post_attention_layernorm",
            "attn_sinks.weight": "self_attn.sinks",
            "ffn_gate_inp": "mlp.router",
            "ffn_down_exps.weight": "mlp.experts.down_proj",
            "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
        },
        merges=(
            Merge(
                "mlp.experts.gate_up_proj",
                ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
                layouts.interleaved_columns,
            ),
            Merge(
                "mlp.experts.gate_up_proj_bias",
                ("ffn_gate_exps.bias", "ffn_up_exps.bias"),
                layouts.interleaved,
            ),
        ),
        layouts={"ffn_down_exps.weight": layouts.transposed},
    ),
    "llama4": Architecture(
        "llama4_text",
        "Llama4ForCausalLM",
        keys={
            **LOCAL_EXPERTS,
            "intermediate_size": size_at("expert_feed_forward_length"),
            "intermediate_size_mlp": size_at("feed_forward_length"),
            "interleave_moe_layer_step": size_at("interleave_moe_layer_step"),
            "attention_bias": has_tensor("attn_q.bias"),
        },
        fixed={
            "attention_chunk_size": LLAMA4_CHUNK,
            "no_rope_layer_interval": NO_ROPE_PERIOD,
            "attn_temperature_tuning": True,
            "floor_scale": 8192,
            "attn_scale": 0.1,
        },
        adapt=_llama4,
        gating=SIGMOID,
        names={
            "ffn_gate": "feed_forward.gate_proj",
            "ffn_up": "feed_forward.up_proj",
            "ffn_down": "feed_forward.down_proj",
            "ffn_gate_inp": "feed_forward.router",
            "ffn_gate_shexp": "feed_forward.shared_expert.gate_proj",
            "ffn_up_shexp": "feed_forward.shared_expert.up_proj",
            "ffn_down_shexp": "feed_forward.shared_expert.down_proj",
            "ffn_down_exps.weight": "feed_forward.experts.down_proj",
        },
        merges=(
            Merge(
                "feed_forward.experts.gate_up_proj",
                ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
                layouts.joined_columns,
            ),
        ),
        layouts={"ffn_down_exps.weight": layouts.transposed},
    ),
}
"""The entries by `general.architecture`."""
