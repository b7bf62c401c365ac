"""Architectures with state spaces (Mamba), alone or beside layers of attention."""

from stonechat_models.checkpoint.gguf import layouts
from stonechat_models.checkpoint.gguf.architecture import SIGMOID, Architecture, Merge
from stonechat_models.checkpoint.gguf.architectures.dense import GRANITE_EFFECTS, GRANITE_SCALES
from stonechat_models.checkpoint.gguf.architectures.experts import (
    GRANITE_EXPERTS,
    GRANITE_NAMES,
    GRANITE_SHARED,
    ROUTED_EFFECTS,
    num_experts,
)
from stonechat_models.checkpoint.gguf.architectures.linear_attention import ATTENTION, STATE
from stonechat_models.checkpoint.gguf.metadata import (
    Config,
    attention_layers,
    expert_layers,
    flag,
    flag_at,
    has,
    has_tensor,
    integer,
    per_layer,
    positive_at,
    refusal,
    size_at,
)
from stonechat_models.checkpoint.gguf.reader import GgufFile

_ATTENTION_KEYS = (
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
    *("rope_parameters", "intermediate_size"),
)


def _mamba2(gguf: GgufFile) -> tuple[int, int, int]:
    """Return the inner size, and the number and size of heads."""
    inner, heads = integer(gguf, "ssm.inner_size"), integer(gguf, "ssm.time_step_rank")
    if inner % heads:
        raise refusal(gguf, f"ssm.inner_size is {inner} for {heads} heads")
    return inner, heads, inner // heads


def _granite_hybrid(gguf: GgufFile, config: Config) -> None:
    config["layer_types"] = attention_layers(gguf, STATE)
    inner, config["mamba_n_heads"], config["mamba_d_head"] = _mamba2(gguf)
    if inner % config["hidden_size"]:
        raise refusal(gguf, "ssm.inner_size is not a multiple of embedding_length")
    config["mamba_expand"] = inner // config["hidden_size"]
    config["position_embedding_type"] = (
        "rope" if flag(gguf, "rope.scaling.finetuned", True) else "nope"
    )
    config["num_local_experts"] = 0
    if has(gguf, "ffn_gate_inp.weight"):
        config["num_local_experts"] = num_experts(gguf)
        config["num_experts_per_tok"] = integer(gguf, "expert_used_count")
    config["shared_intermediate_size"] = integer(
        gguf, "expert_shared_feed_forward_length", config.get("intermediate_size")
    )


def _nemotron_h(gguf: GgufFile, config: Config) -> None:
    """A layer has key heads, or a feed-forward block, or a state."""
    heads = per_layer(gguf, "attention.head_count_kv")
    sizes = per_layer(gguf, "feed_forward_length")
    block = "moe" if has(gguf, "ffn_gate_inp.weight") else "mlp"
    config["layers_block_type"] = [
        ATTENTION if kv else block if size else STATE for kv, size in zip(heads, sizes, strict=True)
    ]
    config["intermediate_size"] = max(*sizes, 1)
    _, config["mamba_num_heads"], config["mamba_head_dim"] = _mamba2(gguf)
    if block == "moe":
        config["n_routed_experts"] = num_experts(gguf)
        config["num_experts_per_tok"] = integer(gguf, "expert_used_count")
        config["moe_intermediate_size"] = integer(gguf, "expert_feed_forward_length")


def _falcon_h1(gguf: GgufFile, config: Config) -> None:
    """The file's weights contain the multipliers of the config."""
    config["mamba_d_ssm"], config["mamba_n_heads"], config["mamba_d_head"] = _mamba2(gguf)
    if config["tie_word_embeddings"]:
        raise refusal(gguf, "its embedding is scaled, and also serves as its head")


def _schedule(gguf: GgufFile, chosen: list[bool], what: str) -> tuple[int, int]:
    """Return the period and the offset of the chosen layers; each period has one."""
    places = [i for i, is_chosen in enumerate(chosen) if is_chosen]
    offset = places[0] if places else 0
    period = places[1] - offset if len(places) > 1 else len(chosen) + 1
    if not places or [i % period == offset for i in range(len(chosen))] != chosen:
        raise refusal(gguf, f"its layers with {what} do not come after equal numbers of layers")
    return period, offset


def _jamba(gguf: GgufFile, config: Config) -> None:
    del config["rope_parameters"]
    inner, hidden = integer(gguf, "ssm.inner_size"), config["hidden_size"]
    if inner % hidden:
        raise refusal(gguf, "ssm.inner_size is not a multiple of embedding_length")
    config["mamba_expand"] = inner // hidden
    attention = [count > 0 for count in per_layer(gguf, "attention.head_count_kv")]
    config["attn_layer_period"], config["attn_layer_offset"] = _schedule(
        gguf, attention, "attention"
    )
    experts = [kind == "sparse" for kind in expert_layers(gguf)]
    config["num_experts"] = num_experts(gguf) if any(experts) else 1
    if any(experts):
        config["num_experts_per_tok"] = integer(gguf, "expert_used_count")
        config["expert_layer_period"], config["expert_layer_offset"] = _schedule(
            gguf, experts, "experts"
        )


def _without_attention(config: Config) -> None:
    for key in _ATTENTION_KEYS:
        config.pop(key, None)


def _mamba(gguf: GgufFile, config: Config) -> None:
    _without_attention(config)
    if flag(gguf, "ssm.dt_b_c_rms", False):
        raise refusal(gguf, "its state spaces norm their inputs")
    inner, hidden = integer(gguf, "ssm.inner_size"), config["hidden_size"]
    if inner % hidden:
        raise refusal(gguf, "ssm.inner_size is not a multiple of embedding_length")
    config["expand"] = inner // hidden


def _mamba_2(gguf: GgufFile, config: Config) -> None:
    _without_attention(config)
    inner, config["num_heads"], config["head_dim"] = _mamba2(gguf)
    config["expand"] = inner // config["hidden_size"]


_MAMBA2_LAYOUTS = {
    "ssm_conv1d.weight": layouts.conv_kernel,
    "ssm_a": layouts.log_of_negated,
    "ssm_d": layouts.flat,
    "ssm_norm.weight": layouts.flat,
}


def _mamba2_names(prefix: str) -> dict[str, str]:
    return {
        "ssm_in": f"{prefix}.in_proj",
        "ssm_conv1d": f"{prefix}.conv1d",
        "ssm_dt.bias": f"{prefix}.dt_bias",
        "ssm_a": f"{prefix}.A_log",
        "ssm_d": f"{prefix}.D",
        "ssm_norm": f"{prefix}.norm",
        "ssm_out": f"{prefix}.out_proj",
    }


def _mamba_names(prefix: str) -> dict[str, str]:
    return {
        **_mamba2_names(prefix),
        "ssm_x": f"{prefix}.x_proj",
        "ssm_dt": f"{prefix}.dt_proj",
        "ssm_dt.bias": f"{prefix}.dt_proj.bias",
    }


_MAMBA_LAYOUTS = {
    "ssm_conv1d.weight": layouts.conv_kernel,
    "ssm_a": layouts.log_of_negated_matrix,
}
_MAMBA_TOP = {"token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f"}
_NEMOTRON_H = Architecture(
    "nemotron_h",
    "NemotronHForCausalLM",
    keys={
        "ssm_state_size": size_at("ssm.state_size"),
        "n_groups": size_at("ssm.group_count"),
        "conv_kernel": size_at("ssm.conv_kernel"),
        "use_conv_bias": has_tensor("ssm_conv1d.bias"),
        "mamba_proj_bias": has_tensor("ssm_in.bias"),
        "attention_bias": has_tensor("attn_q.bias"),
        "mlp_bias": has_tensor("ffn_up.bias"),
        "n_shared_experts": size_at("expert_shared_count", 1, least=0),
        "moe_shared_expert_intermediate_size": size_at("expert_shared_feed_forward_length", 1),
        "moe_latent_size": lambda gguf: gguf.value("moe_latent_size"),
        "n_group": size_at("expert_group_count", 1),
        "topk_group": size_at("expert_group_used_count", 1),
        "routed_scaling_factor": positive_at("expert_weights_scale", 1.0),
        "norm_topk_prob": flag_at("expert_weights_norm", False),
    },
    fixed={"mlp_hidden_act": "relu2"},
    adapt=_nemotron_h,
    effects=ROUTED_EFFECTS,
    gating=SIGMOID,
    own_heads=True,
    eps="layer_norm_epsilon",
    names={
        **_mamba2_names("mixer"),
        "attn_norm": "norm",
        "attn_q": "mixer.q_proj",
        "attn_k": "mixer.k_proj",
        "attn_v": "mixer.v_proj",
        "attn_output": "mixer.o_proj",
        "ffn_up": "mixer.up_proj",
        "ffn_down": "mixer.down_proj",
        "ffn_gate_inp": "mixer.gate",
        "exp_probs_b.bias": "mixer.gate.e_score_correction_bias",
        "ffn_up_exps": "mixer.experts.{}.up_proj",
        "ffn_down_exps": "mixer.experts.{}.down_proj",
        "ffn_up_shexp": "mixer.shared_experts.up_proj",
        "ffn_down_shexp": "mixer.shared_experts.down_proj",
        "ffn_latent_down": "mixer.fc1_latent_proj",
        "ffn_latent_up": "mixer.fc2_latent_proj",
    },
    top_names=_MAMBA_TOP,
    layouts=_MAMBA2_LAYOUTS,
    layer_prefix="backbone.layers",
)

_MAMBA_KEYS = {
    "state_size": size_at("ssm.state_size"),
    "conv_kernel": size_at("ssm.conv_kernel"),
    "use_conv_bias": has_tensor("ssm_conv1d.bias"),
    "use_bias": has_tensor("ssm_in.bias"),
}

STATE_SPACES: dict[str, Architecture] = {
    "granitehybrid": Architecture(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        keys={
            **GRANITE_SCALES,
            "attention_bias": has_tensor("attn_q.bias"),
            "mamba_n_groups": size_at("ssm.group_count"),
            "mamba_d_state": size_at("ssm.state_size"),
            "mamba_d_conv": size_at("ssm.conv_kernel"),
            "mamba_conv_bias": has_tensor("ssm_conv1d.bias"),
            "mamba_proj_bias": has_tensor("ssm_in.bias"),
        },
        adapt=_granite_hybrid,
        effects=GRANITE_EFFECTS,
        own_heads=True,
        names={**GRANITE_NAMES, **_mamba2_names("mamba"), "ffn_down": "shared_mlp.output_linear"},
        merges=(
            GRANITE_EXPERTS,
            GRANITE_SHARED,
            Merge(
                "shared_mlp.input_linear.weight",
                ("ffn_gate.weight", "ffn_up.weight"),
                layouts.rows_joined(0),
            ),
        ),
        layouts=_MAMBA2_LAYOUTS,
        permuted_rope=True,
    ),
    "jamba": Architecture(
        "jamba",
        "JambaForCausalLM",
        keys={
            "mamba_d_state": size_at("ssm.state_size"),
            "mamba_d_conv": size_at("ssm.conv_kernel"),
            "mamba_dt_rank": size_at("ssm.time_step_rank"),
            "mamba_conv_bias": has_tensor("ssm_conv1d.bias"),
            "mamba_proj_bias": has_tensor("ssm_in.bias"),
        },
        adapt=_jamba,
        own_heads=True,
        names={
            **_mamba_names("mamba"),
            "ssm_dt_norm": "mamba.dt_layernorm",
            "ssm_b_norm": "mamba.b_layernorm",
            "ssm_c_norm": "mamba.c_layernorm",
            "ffn_norm": "pre_ff_layernorm",
            "ffn_gate": "feed_forward.gate_proj",
            "ffn_up": "feed_forward.up_proj",
            "ffn_down": "feed_forward.down_proj",
            "ffn_gate_inp": "feed_forward.router",
            "ffn_gate_exps": "feed_forward.experts.{}.gate_proj",
            "ffn_up_exps": "feed_forward.experts.{}.up_proj",
            "ffn_down_exps": "feed_forward.experts.{}.down_proj",
        },
        top_names={"output_norm": "model.final_layernorm"},
        layouts=_MAMBA_LAYOUTS,
    ),
    "nemotron_h": _NEMOTRON_H,
    "nemotron_h_moe": _NEMOTRON_H,
    "falcon-h1": Architecture(
        "falcon_h1",
        "FalconH1ForCausalLM",
        keys={
            "mamba_n_groups": size_at("ssm.group_count"),
            "mamba_d_state": size_at("ssm.state_size"),
            "mamba_d_conv": size_at("ssm.conv_kernel"),
            "mamba_conv_bias": has_tensor("ssm_conv1d.bias"),
            "mamba_proj_bias": has_tensor("ssm_in.bias"),
            "mamba_rms_norm": has_tensor("ssm_norm.weight"),
            "attention_bias": has_tensor("attn_q.bias"),
            "mlp_bias": has_tensor("ffn_up.bias"),
        },
        fixed={"mamba_norm_before_gate": False},
        adapt=_falcon_h1,
        names={
            **_mamba2_names("mamba"),
            "ffn_norm": "pre_ff_layernorm.weight",  # the file leaves out `.weight`
            "ffn_gate": "feed_forward.gate_proj",
            "ffn_up": "feed_forward.up_proj",
            "ffn_down": "feed_forward.down_proj",
        },
        top_names={"output_norm": "model.final_layernorm"},
        layouts=_MAMBA2_LAYOUTS,
    ),
    "mamba": Architecture(
        "mamba",
        "MambaForCausalLM",
        keys={**_MAMBA_KEYS, "time_step_rank": size_at("ssm.time_step_rank")},
        adapt=_mamba,
        own_heads=True,
        eps="layer_norm_epsilon",
        names={
            **_mamba_names("mixer"),
            "attn_norm": "norm",
        },
        top_names=_MAMBA_TOP,
        layouts=_MAMBA_LAYOUTS,
        layer_prefix="backbone.layers",
    ),
    "mamba2": Architecture(
        "mamba2",
        "Mamba2ForCausalLM",
        keys={**_MAMBA_KEYS, "n_groups": size_at("ssm.group_count")},
        adapt=_mamba_2,
        own_heads=True,
        eps="layer_norm_epsilon",
        names={**_mamba2_names("mixer"), "attn_norm": "norm"},
        top_names=_MAMBA_TOP,
        layouts=_MAMBA2_LAYOUTS,
        layer_prefix="backbone.layers",
    ),
}
"""The entries by `general.architecture`."""
