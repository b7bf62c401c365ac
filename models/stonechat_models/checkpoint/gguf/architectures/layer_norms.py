"""Decoders whose norms subtract the mean."""

from dataclasses import replace

from stonechat_models.checkpoint.gguf import layouts
from stonechat_models.checkpoint.gguf.architecture import Architecture
from stonechat_models.checkpoint.gguf.metadata import (
    Config,
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

STARCODER2_WINDOW = 4096
"""The sliding window of all published models. Their files do not name it."""
OLMO_EPS, ALIBI_BIAS, EXPANSION = 1e-5, 8.0, 4


def _cohere2(gguf: GgufFile, config: Config) -> None:
    config["layer_types"] = window_types(gguf, 4)


def _clamp(gguf: GgufFile) -> float | None:
    return number(gguf, "attention.clamp_kqv", 0.0) or None


def _olmo(gguf: GgufFile, config: Config) -> None:
    if config.pop("layer_norm_eps") != OLMO_EPS:
        raise refusal(gguf, f"attention.layer_norm_epsilon is not {OLMO_EPS}")


def _inner_size(gguf: GgufFile, config: Config) -> int:
    """Take the size of feed-forward blocks out of a config that has another name for it."""
    config.pop("intermediate_size", None)
    return integer(gguf, "feed_forward_length")


def _expanded(gguf: GgufFile, config: Config) -> None:
    """The module has no other size of feed-forward blocks."""
    if _inner_size(gguf, config) != EXPANSION * config["hidden_size"]:
        raise refusal(gguf, f"feed_forward_length is not {EXPANSION} times embedding_length")


def _mpt(gguf: GgufFile, config: Config) -> None:
    _expanded(gguf, config)
    if config["num_key_value_heads"] != config["num_attention_heads"]:
        raise refusal(gguf, "attention.head_count_kv is not the number of heads")
    if positive(gguf, "attention.max_alibi_bias") != ALIBI_BIAS:
        raise refusal(gguf, f"attention.max_alibi_bias is not {ALIBI_BIAS}")
    config["attn_config"] = {"model_type": "", "clip_qkv": _clamp(gguf)}
    config["max_seq_len"] = config["max_position_embeddings"]


def _falcon(gguf: GgufFile, config: Config) -> None:
    """Falcon 7B has one key head and one norm in each layer; 40B and 180B have two norms."""
    heads = config["num_kv_heads"] = config["num_key_value_heads"]
    config["num_ln_in_parallel_attn"] = 2 if has(gguf, "attn_norm_2.weight") else 1
    config["new_decoder_architecture"] = heads > 1 or config["num_ln_in_parallel_attn"] == 2
    config["ffn_hidden_size"] = _inner_size(gguf, config)
    del config["head_dim"]


def _starcoder(gguf: GgufFile, config: Config) -> None:
    config["multi_query"] = config["num_key_value_heads"] == 1
    config["n_inner"] = _inner_size(gguf, config)


def _gpt2(gguf: GgufFile, config: Config) -> None:
    config["n_inner"] = _inner_size(gguf, config)


_COMMAND_R = Architecture(
    "cohere",
    "CohereForCausalLM",
    keys={
        "logit_scale": positive_at("logit_scale"),
        "use_qk_norm": has_tensor("attn_q_norm.weight"),
    },
    fixed={"attention_bias": False},
    effects=frozenset({"logit_scale"}),
    eps="layer_norm_eps",
    layer_norm=True,
)
_FULL_BIASES = {
    "attention_bias": has_tensor("attn_q.bias"),
    "mlp_bias": has_tensor("ffn_up.bias"),
}
_GPT_TOP = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
}
_GPT2 = Architecture(
    "gpt2",
    "GPT2LMHeadModel",
    adapt=_gpt2,
    eps="layer_norm_epsilon",
    layer_norm=True,
    names={
        "attn_norm": "ln_1",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    },
    top_names=_GPT_TOP,
    layouts={
        f"{name}.weight": layouts.transposed
        for name in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    },
    layer_prefix="transformer.h",
)
_BLOOM_NAMES = {
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_BLOOM_TOP = {"token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f"}
_BY_KEY_HEAD = {f"attn_qkv.{kind}": layouts.by_key_head for kind in ("weight", "bias")}
_FALCON = Architecture(
    "falcon",
    "FalconForCausalLM",
    adapt=_falcon,
    eps="layer_norm_epsilon",
    layer_norm=True,
    names={**_BLOOM_NAMES, "attn_norm": "input_layernorm"},
    top_names=_BLOOM_TOP,
    layouts=_BY_KEY_HEAD,
    layer_prefix="transformer.h",
)

LAYER_NORMS: dict[str, Architecture] = {
    "command-r": _COMMAND_R,
    "cohere2": replace(
        _COMMAND_R,
        model_type="cohere2",
        class_name="Cohere2ForCausalLM",
        keys={
            "logit_scale": positive_at("logit_scale"),
            "sliding_window": size_at("attention.sliding_window"),
        },
        adapt=_cohere2,
    ),
    "starcoder2": Architecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        keys={
            "use_bias": has_tensor("attn_q.bias"),
            "sliding_window": size_at("attention.sliding_window", STARCODER2_WINDOW),
        },
        fixed={"hidden_act": "gelu_pytorch_tanh"},
        eps="norm_epsilon",
        layer_norm=True,
        names={"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    ),
    "olmo": Architecture(
        "olmo",
        "OlmoForCausalLM",
        keys={"clip_qkv": _clamp},
        fixed={"attention_bias": False},
        adapt=_olmo,
        effects=frozenset({"attention.clamp_kqv"}),
        eps="layer_norm_eps",
        layer_norm=True,
        permuted_rope=True,
    ),
    "stablelm": Architecture(
        "stablelm",
        "StableLmForCausalLM",
        keys={
            "use_qkv_bias": has_tensor("attn_q.bias"),
            "qk_layernorm": has_tensor("attn_q_norm.weight"),
            "use_parallel_residual": lambda gguf: not has(gguf, "ffn_norm.weight"),
        },
        partial_rope=True,
        eps="layer_norm_eps",
        layer_norm=True,
        names={
            "attn_q_norm": "self_attn.q_layernorm.norms.{}",
            "attn_k_norm": "self_attn.k_layernorm.norms.{}",
        },
    ),
    "nemotron": Architecture(
        "nemotron",
        "NemotronForCausalLM",
        keys=_FULL_BIASES,
        fixed={"hidden_act": "relu2"},
        partial_rope=True,
        eps="norm_eps",
        layer_norm=True,
        norm_offset=1.0,
    ),
    "jais2": Architecture(
        "jais2",
        "Jais2ForCausalLM",
        keys=_FULL_BIASES,
        fixed={"hidden_act": "relu2"},
        eps="layer_norm_eps",
        layer_norm=True,
    ),
    "phi2": Architecture(
        "phi",
        "PhiForCausalLM",
        keys={"qk_layernorm": has_tensor("attn_q_norm.weight")},
        fixed={"hidden_act": "gelu_new"},
        partial_rope=True,
        eps="layer_norm_eps",
        layer_norm=True,
        names={
            "attn_output": "self_attn.dense",
            "attn_q_norm": "self_attn.q_layernorm",
            "attn_k_norm": "self_attn.k_layernorm",
            "ffn_up": "mlp.fc1",
            "ffn_down": "mlp.fc2",
        },
        top_names={"output_norm": "model.final_layernorm"},
    ),
    "gptneox": Architecture(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        keys={
            "use_parallel_residual": flag_at("use_parallel_residual", True),
            "attention_bias": has_tensor("attn_qkv.bias"),
        },
        fixed={"hidden_act": "gelu"},
        partial_rope=True,
        eps="layer_norm_eps",
        layer_norm=True,
        names={
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        top_names={
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
        },
        layouts=_BY_KEY_HEAD,
        layer_prefix="gpt_neox.layers",
    ),
    "gpt2": _GPT2,
    "starcoder": replace(
        _GPT2,
        model_type="gpt_bigcode",
        class_name="GPTBigCodeForCausalLM",
        adapt=_starcoder,
        layouts={},
    ),
    "bloom": Architecture(
        "bloom",
        "BloomForCausalLM",
        adapt=_expanded,
        eps="layer_norm_epsilon",
        layer_norm=True,
        names=_BLOOM_NAMES,
        top_names={**_BLOOM_TOP, "token_embd_norm": "transformer.word_embeddings_layernorm"},
        layouts=_BY_KEY_HEAD,
        layer_prefix="transformer.h",
    ),
    "mpt": Architecture(
        "mpt",
        "MptForCausalLM",
        adapt=_mpt,
        effects=frozenset({"attention.max_alibi_bias", "attention.clamp_kqv"}),
        eps="layer_norm_epsilon",
        layer_norm=True,
        names={
            "attn_norm": "norm_1",
            "attn_qkv": "attn.Wqkv",
            "attn_output": "attn.out_proj",
            "ffn_norm": "norm_2",
            "ffn_up": "ffn.up_proj",
            "ffn_down": "ffn.down_proj",
        },
        top_names={"token_embd": "transformer.wte", "output_norm": "transformer.norm_f"},
        layer_prefix="transformer.blocks",
    ),
    "falcon": replace(
        _FALCON,
        variants=(
            (
                lambda gguf: has(gguf, "attn_norm_2.weight"),
                replace(
                    _FALCON,
                    names={**_BLOOM_NAMES, "attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"},
                ),
            ),
        ),
    ),
}
"""The entries by `general.architecture`."""
