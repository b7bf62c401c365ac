"""Architectures whose attention has latent keys and values (MLA)."""

from dataclasses import replace

from stonechat_models.checkpoint.gguf import layouts
from stonechat_models.checkpoint.gguf.architecture import SIGMOID, Architecture, Merge
from stonechat_models.checkpoint.gguf.architectures.experts import (
    ROUTED,
    ROUTED_EFFECTS,
    SHARED_NAMES,
    STACKED_EXPERTS,
    num_experts,
    w_experts,
)
from stonechat_models.checkpoint.gguf.architectures.linear_attention import STATE
from stonechat_models.checkpoint.gguf.metadata import (
    Config,
    attention_layers,
    expert_layers,
    flag_at,
    has,
    has_tensor,
    integer,
    number,
    positive,
    refusal,
    size_at,
)
from stonechat_models.checkpoint.gguf.reader import GgufFile
from stonechat_models.checkpoint.gguf.rope import longrope_of

GLM_FLASH_VOCAB = 154880


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
        config["norm_topk_prob"] = False  # the module has no other way


def _mistral4(gguf: GgufFile, config: Config) -> None:
    _deepseek(gguf, config)
    rope, nope = config["qk_rope_head_dim"], config["qk_nope_head_dim"]
    config["rope_parameters"]["partial_rotary_factor"] = rope / (rope + nope)
    config["rope_parameters"]["llama_4_scaling_beta"] = positive(
        gguf, "attention.temperature_scale"
    )


def _glm_dsa(gguf: GgufFile, config: Config) -> None:
    """Layers without an indexer of their own use the choice of an earlier one."""
    _deepseek(gguf, config)
    names = (f"blk.{i}.indexer.attn_k.weight" for i in range(config["num_hidden_layers"]))
    config["indexer_types"] = ["full" if name in gguf.tensors else "shared" for name in names]


def _minicpm3(gguf: GgufFile, config: Config) -> None:
    """The size of value heads is that of their tensor."""
    rotary, key_size = integer(gguf, "rope.dimension_count"), integer(gguf, "attention.key_length")
    if key_size <= rotary:
        raise refusal(gguf, f"RoPE covers {rotary} dimensions of heads of size {key_size}")
    config["qk_rope_head_dim"], config["qk_nope_head_dim"] = rotary, key_size - rotary
    projection = gguf.tensors.get("blk.0.attn_kv_b.weight")
    heads = integer(gguf, "attention.head_count")
    rows = 0 if projection is None else projection.shape[0]
    config["v_head_dim"] = rows // heads - config["qk_nope_head_dim"]
    if config["v_head_dim"] < 1 or rows % heads:
        raise refusal(gguf, f"attn_kv_b does not have the rows of {heads} heads")
    del config["head_dim"]


def _kimi_linear(gguf: GgufFile, config: Config) -> None:
    _deepseek(gguf, config)
    config["layer_types"] = attention_layers(gguf, STATE)
    config["linear_num_heads"] = config["num_attention_heads"]


def _has_no_experts(gguf: GgufFile) -> bool:
    return not gguf.value("expert_count")


def _is_deepseek_v3(gguf: GgufFile) -> bool:
    """Files of GLM-4.7-Flash do not name how experts are chosen."""
    function = integer(gguf, "expert_gating_func", 0, least=0)
    is_flash = not function and gguf.value("vocab_size") == GLM_FLASH_VOCAB
    return function == SIGMOID or is_flash or has(gguf, "exp_probs_b.bias")


_DEEPSEEK = Architecture(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    keys={
        **ROUTED,
        "kv_lora_rank": size_at("attention.kv_lora_rank"),
        "attention_bias": has_tensor("attn_q_a.bias"),
    },
    adapt=_deepseek,
    effects=ROUTED_EFFECTS,
    own_heads=True,
    names={
        **SHARED_NAMES,
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
    keys={key: read for key, read in _DEEPSEEK.keys.items() if key not in ROUTED},
    fixed={"pad_token_id": None},  # transformers' code clears the row of this token
)
_DEEPSEEK_V3 = replace(
    _DEEPSEEK, model_type="deepseek_v3", class_name="DeepseekV3ForCausalLM", gating=SIGMOID
)
_DEEPSEEK_V32 = replace(
    _DEEPSEEK_V3,
    model_type="deepseek_v32",
    class_name="DeepseekV32ForCausalLM",
    keys={
        **_DEEPSEEK.keys,
        "index_n_heads": size_at("attention.indexer.head_count"),
        "index_head_dim": size_at("attention.indexer.key_length"),
        "index_topk": size_at("attention.indexer.top_k"),
    },
    names={
        **_DEEPSEEK.names,
        "indexer.k_norm": "self_attn.indexer.k_norm",
        "indexer.proj": "self_attn.indexer.weights_proj",
        "indexer.attn_k": "self_attn.indexer.wk",
        "indexer.attn_q_b": "self_attn.indexer.wq_b",
    },
)
_KDA_NAMES = {
    "ssm_conv1d_q": "self_attn.q_conv1d",
    "ssm_conv1d_k": "self_attn.k_conv1d",
    "ssm_conv1d_v": "self_attn.v_conv1d",
    "ssm_f_a": "self_attn.f_a_proj",
    "ssm_f_b": "self_attn.f_b_proj",
    "ssm_g_a": "self_attn.g_a_proj",
    "ssm_g_b": "self_attn.g_b_proj",
    "ssm_beta": "self_attn.b_proj",
    "ssm_norm": "self_attn.o_norm",
    "ssm_a": "self_attn.A_log",
    "ssm_dt.bias": "self_attn.dt_bias",
}

LATENT: dict[str, Architecture] = {
    "deepseek32": _DEEPSEEK_V32,
    "glm-dsa": replace(
        _DEEPSEEK_V32,
        model_type="glm_moe_dsa",
        class_name="GlmMoeDsaForCausalLM",
        adapt=_glm_dsa,
    ),
    "minicpm3": replace(
        _DEEPSEEK,
        model_type="minicpm3",
        class_name="MiniCPM3ForCausalLM",
        keys={
            "kv_lora_rank": size_at("attention.kv_lora_rank"),
            "q_lora_rank": size_at("attention.q_lora_rank"),
        },
        fixed={"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256},
        adapt=_minicpm3,
        effects=frozenset(),
        rope=longrope_of,
    ),
    "kimi-linear": replace(
        _DEEPSEEK_V3,
        model_type="kimi_linear",
        class_name="KimiLinearForCausalLM",
        keys={
            **_DEEPSEEK.keys,
            "num_experts": num_experts,
            "mlp_layer_types": expert_layers,
            "linear_head_dim": size_at("kda.head_dim"),
            "linear_conv_kernel_dim": size_at("ssm.conv_kernel"),
            "norm_topk_prob": flag_at("expert_weights_norm", True),
        },
        adapt=_kimi_linear,
        names={**_DEEPSEEK.names, **_KDA_NAMES, **w_experts("mlp")},
        layouts={
            **{f"ssm_conv1d_{part}.weight": layouts.conv_kernel for part in "qkv"},
            "ssm_a": layouts.decay_per_head,
        },
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
        merges=(*_DEEPSEEK.merges, STACKED_EXPERTS),
    ),
}
"""The entries by `general.architecture`."""
