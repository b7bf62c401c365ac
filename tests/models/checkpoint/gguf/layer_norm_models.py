"""Tiny models whose norms subtract the mean, one or more for each such architecture."""

from typing import Any

_QUARTER = {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.25}

LAYER_NORM_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "command-r": ("command-r", "CohereConfig", {"logit_scale": 0.25}),
    "command-r-plus": ("command-r", "CohereConfig", {"logit_scale": 0.25, "use_qk_norm": True}),
    "cohere2": ("cohere2", "Cohere2Config", {"sliding_window": 8, "logit_scale": 0.25}),
    "starcoder2": ("starcoder2", "Starcoder2Config", {}),
    "olmo": ("olmo", "OlmoConfig", {"clip_qkv": 0.9}),
    "stablelm": ("stablelm", "StableLmConfig", {"rope_parameters": _QUARTER}),
    "stablelm-12b": (
        "stablelm",
        "StableLmConfig",
        {"rope_parameters": _QUARTER, "qk_layernorm": True, "use_parallel_residual": True},
    ),
    "nemotron": ("nemotron", "NemotronConfig", {"rope_parameters": _QUARTER}),
    "jais2": ("jais2", "Jais2Config", {"head_dim": 16}),
    "phi2": (
        "phi2",
        "PhiConfig",
        {"rope_parameters": _QUARTER, "intermediate_size": 256, "num_key_value_heads": 4},
    ),
    "gptneox": (
        "gptneox",
        "GPTNeoXConfig",
        {"rope_parameters": _QUARTER, "num_key_value_heads": 4},
    ),
    "gpt2": ("gpt2", "GPT2Config", {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 512}),
    "starcoder": (
        "starcoder",
        "GPTBigCodeConfig",
        {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 512},
    ),
    "falcon-7b": ("falcon", "FalconConfig", {"num_kv_heads": 1}),
    "falcon-11b": (
        "falcon",
        "FalconConfig",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-40b": (
        "falcon",
        "FalconConfig",
        {"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "bloom": ("bloom", "BloomConfig", {"n_layer": 4, "n_head": 4}),
    "mpt": (
        "mpt",
        "MptConfig",
        {"d_model": 64, "n_layers": 4, "n_heads": 4, "attn_config": {"clip_qkv": 0.9}},
    ),
}
"""name: (architecture of the file, class of the config, its settings)"""
