"""Architectures whose experts transformers stores in forms of their own."""

from stonechat_models.checkpoint.gguf import layouts
from stonechat_models.checkpoint.gguf.architecture import Architecture, Merge
from stonechat_models.checkpoint.gguf.dense import NO_ROPE_PERIOD
from stonechat_models.checkpoint.gguf.experts import LOCAL_EXPERTS, num_experts
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
from stonechat_models.checkpoint.gguf.rope import proportional_of

LLAMA4_CHUNK, MAVERICK_EXPERTS = 8192, 128


def _gpt_oss(gguf: GgufFile, config: Config) -> None:
    config["layer_types"] = [
        "full_attention" if i % 2 else "sliding_attention" for i in range(num_blocks(gguf))
    ]
    if config["rope_parameters"]["rope_type"] == "yarn":
        config["rope_parameters"]["truncate"] = False


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
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
            "post_ffw_norm_1": "post_feedforward_layernorm_1",
            "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
            "post_ffw_norm_2": "post_feedforward_layernorm_2",
            "layer_output_scale.weight": "layer_scalar",
            "inp_gate": "per_layer_input_gate",
            "proj": "per_layer_projection",
            "post_norm": "post_per_layer_input_norm",
            "ffn_gate_inp": "router.proj",
            "ffn_gate_inp.scale": "router.scale",
            "ffn_down_exps.scale": "router.per_expert_scale",
            "ffn_gate_up_exps.weight": "experts.gate_up_proj",
            "ffn_down_exps.weight": "experts.down_proj",
        },
        top_names={
            "per_layer_token_embd": "model.embed_tokens_per_layer",
            "per_layer_model_proj": "model.per_layer_model_projection",
            "per_layer_proj_norm": "model.per_layer_projection_norm",
        },
        merges=(
            Merge(
                "experts.gate_up_proj",
                ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
                layouts.rows_joined(1),
            ),
        ),
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
