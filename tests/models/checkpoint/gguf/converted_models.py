"""Tiny random models, one or more for each architecture that GGUF files are read of."""

from typing import Any

import torch

from tests.models.checkpoint.gguf.layer_norm_models import LAYER_NORM_MODELS

COMMON: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_TYPES = ["sliding_attention", "full_attention"] * 2
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 2,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 1.7,
    "first_k_dense_replace": 1,
}
_DELTA_NET = {
    "linear_num_value_heads": 6,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
    "head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "shared_expert_intermediate_size": 48,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 20000.0,
        "partial_rotary_factor": 0.5,
    },
}
_MROPE = {
    **_DELTA_NET["rope_parameters"],  # type: ignore[dict-item]
    "mrope_section": [2, 1, 1],
    "mrope_interleaved": True,
}
_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "mamba_n_groups": 2,
}
_GRANITE = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.0,
}
_LATENT = {
    **_ROUTED,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0, 10.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "original_max_position_embeddings": 512,
}
_THIRD = {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 1 / 3}
_GEMMA4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 8,
    "vocab_size_per_layer_input": 300,
    "layer_types": _TYPES,
    "final_logit_softcapping": 20.0,
    "hidden_size_per_layer_input": 8,
}
_NEMOTRON = {
    "mamba_num_heads": 4,
    "mamba_head_dim": 32,
    "ssm_state_size": 8,
    "n_groups": 2,
    "chunk_size": 8,
    "head_dim": 16,
}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "granite": ("granite", "GraniteConfig", _GRANITE),
    "olmo2": ("olmo2", "Olmo2Config", {}),
    "olmo3": (
        "olmo2",
        "Olmo3Config",
        {
            "sliding_window": 8,
            "layer_types": _TYPES,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
                "full_attention": {**_YARN, "rope_theta": 20000.0, "attention_factor": 1.2},
            },
        },
    ),
    "smollm3": ("smollm3", "SmolLM3Config", {"num_hidden_layers": 5}),
    "gemma": ("gemma", "GemmaConfig", {"head_dim": 16}),
    "mixtral": ("llama", "MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma4-e4b": (
        "gemma4",
        "Gemma4TextConfig",
        {**_GEMMA4, "num_kv_shared_layers": 2, "use_double_wide_mlp": True},
    ),
    "gemma4-26b": (
        "gemma4",
        "Gemma4TextConfig",
        {
            **_GEMMA4,
            "hidden_size_per_layer_input": 0,
            "num_attention_heads": 4,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
    ),
    "gpt-oss": (
        "gpt-oss",
        "GptOssConfig",
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "hidden_size": 64,
            "intermediate_size": 96,
            "rope_parameters": {**_YARN, "rope_theta": 150000.0, "truncate": False},
        },
    ),
    "ministral3": (
        "mistral3",
        "Ministral3Config",
        {
            "head_dim": 16,
            "rope_parameters": {
                **_YARN,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.3,
                "original_max_position_embeddings": 16,
                "factor": 32.0,
            },
        },
    ),
    "mistral3": ("mistral3", "MistralConfig", {"head_dim": 24, "sliding_window": None}),
    "qwen2moe": (
        "qwen2moe",
        "Qwen2MoeConfig",
        {**_EXPERTS, "shared_expert_intermediate_size": 48},
    ),
    "qwen3vl": ("qwen3vl", "Qwen3Config", {"head_dim": 16}),
    "qwen3vlmoe": (
        "qwen3vlmoe",
        "Qwen3MoeConfig",
        {**_EXPERTS, "head_dim": 16, "norm_topk_prob": True},
    ),
    "glm4": ("glm4", "Glm4Config", {"head_dim": 16}),
    "glm4moe": (
        "glm4moe",
        "Glm4MoeConfig",
        {**_ROUTED, "head_dim": 24, "use_qk_norm": True, "attention_bias": True},
    ),
    "lfm2": (
        "lfm2",
        "Lfm2Config",
        {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    ),
    "lfm2moe": (
        "lfm2moe",
        "Lfm2MoeConfig",
        {**_EXPERTS, "layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    ),
    "qwen35": (
        "qwen35",
        "Qwen3_5TextConfig",
        {**_DELTA_NET, "rope_parameters": _MROPE, "tie_word_embeddings": True},
    ),
    "qwen35moe": (
        "qwen35moe",
        "Qwen3_5MoeTextConfig",
        {**_DELTA_NET, **_EXPERTS, "rope_parameters": _MROPE},
    ),
    "qwen3next": ("qwen3next", "Qwen3NextConfig", {**_DELTA_NET, **_EXPERTS}),
    "granitemoe": (
        "granitemoe",
        "GraniteMoeConfig",
        {**_GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "granitemoeshared": (
        "granitemoe",
        "GraniteMoeSharedConfig",
        {
            **_GRANITE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 48,
        },
    ),
    "granitehybrid": (
        "granitehybrid",
        "GraniteMoeHybridConfig",
        {
            **_GRANITE,
            **_MAMBA,
            "layer_types": ["mamba", "attention"] * 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 48,
            "position_embedding_type": "nope",
        },
    ),
    "granitehybrid-dense": (
        "granitehybrid",
        "GraniteMoeHybridConfig",
        {
            **_GRANITE,
            **_MAMBA,
            "layer_types": ["mamba", "attention"] * 2,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 48,
            "position_embedding_type": "nope",
        },
    ),
    "deepseek3": (
        "deepseek2",
        "DeepseekV3Config",
        {**_LATENT, "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "deepseek2": (
        "deepseek2",
        "DeepseekV2Config",
        {
            **_LATENT,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_method": "greedy",
            "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "youtu": (
        "deepseek2",
        "YoutuConfig",
        {
            **{key: value for key, value in _LATENT.items() if key not in _ROUTED},
            "intermediate_size": 48,
            "tie_word_embeddings": True,
        },
    ),
    "glm4-flash": (
        "deepseek2",
        "Glm4MoeLiteConfig",
        {
            **{k: v for k, v in _LATENT.items() if k != "first_k_dense_replace"},
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        },
    ),
    "mistral4": (
        "mistral4",
        "Mistral4Config",
        {
            **_LATENT,
            "n_group": 1,
            "first_k_dense_replace": 0,
            "rope_parameters": {
                **_YARN,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.3,
                "original_max_position_embeddings": 16,
                "factor": 32.0,
            },
        },
    ),
    "phi3-longrope": (
        "phi3",
        "Phi3Config",
        {
            "original_max_position_embeddings": 64,
            "partial_rotary_factor": 0.75,
            "sliding_window": 200,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 8.0],
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
                "original_max_position_embeddings": 64,
                "partial_rotary_factor": 0.75,
            },
        },
    ),
    "ernie4_5": ("ernie4_5", "Ernie4_5Config", {"head_dim": 16}),
    "seed_oss": ("seed_oss", "SeedOssConfig", {"head_dim": 24}),
    "exaone4": (
        "exaone4",
        "Exaone4Config",
        {"sliding_window": 8, "layer_types": _TYPES, "rope_parameters": _LLAMA3},
    ),
    "exaone4-full": (
        "exaone4",
        "Exaone4Config",
        {"sliding_window": None, "head_dim": 24, "layer_types": ["full_attention"] * 4},
    ),
    "hunyuan-dense": ("hunyuan-dense", "HunYuanDenseV1Config", {"head_dim": 16}),
    "hunyuan-dense-ntk": (
        "hunyuan-dense",
        "HunYuanDenseV1Config",
        {
            "head_dim": 16,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 10000.0,
                "alpha": 50.0,
                "factor": 1.0,
            },
        },
    ),
    "minimax-m2": (
        "minimax-m2",
        "MiniMaxM2Config",
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 8},
    ),
    "llama4": (
        "llama4",
        "Llama4TextConfig",
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 80,
            "rope_parameters": {**_LLAMA3, "high_freq_factor": 1.0},
        },
    ),
    "nemotron_h": (
        "nemotron_h",
        "NemotronHConfig",
        {**_NEMOTRON, "layers_block_type": ["mamba", "attention", "mlp", "mamba"]},
    ),
    "nemotron_h_moe": (
        "nemotron_h_moe",
        "NemotronHConfig",
        {
            **_NEMOTRON,
            "layers_block_type": ["mamba", "attention", "moe", "mamba"],
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 48,
            "moe_latent_size": 32,
            "routed_scaling_factor": 1.7,
        },
    ),
    "falcon-h1": (
        "falcon-h1",
        "FalconH1Config",
        {
            **_MAMBA,
            "mamba_d_ssm": 128,
            "head_dim": 16,
            "lm_head_multiplier": 0.7,
            "embedding_multiplier": 1.3,
            "mlp_multipliers": [0.8, 1.2],
            "key_multiplier": 0.9,
            "attention_out_multiplier": 1.1,
            "attention_in_multiplier": 0.95,
            "ssm_multipliers": [0.7, 1.1, 0.9, 1.2, 0.8],
            "ssm_in_multiplier": 1.15,
            "ssm_out_multiplier": 0.85,
        },
    ),
    "apertus": (
        "apertus",
        "ApertusConfig",
        {"rope_parameters": {**_LLAMA3, "factor": 8.0}},
    ),
    "arcee": ("arcee", "ArceeConfig", {"head_dim": 24, "mlp_bias": True, "attention_bias": True}),
    "olmoe": ("olmoe", "OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "hunyuan-moe": (
        "hunyuan-moe",
        "HunYuanMoEV1Config",
        {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    ),
    "ernie4_5-moe": (
        "ernie4_5-moe",
        "Ernie4_5_MoeConfig",
        {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32},
    ),
    "afmoe": (
        "afmoe",
        "AfmoeConfig",
        {
            **_EXPERTS,
            "num_shared_experts": 2,
            "num_dense_layers": 1,
            "route_scale": 1.7,
            "sliding_window": 8,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "mup_enabled": True,
            "head_dim": 16,
        },
    ),
    "dots1": (
        "dots1",
        "Dots1Config",
        {**_ROUTED, "n_group": 1, "sliding_window": None, "norm_topk_prob": True},
    ),
    "mamba": (
        "mamba",
        "MambaConfig",
        {"state_size": 8, "time_step_rank": 4, "intermediate_size": 128},
    ),
    "mamba2": (
        "mamba2",
        "Mamba2Config",
        {"state_size": 8, "num_heads": 4, "head_dim": 32, "n_groups": 2, "chunk_size": 8},
    ),
    "internlm2": ("internlm2", "LlamaConfig", {}),
    "minicpm": (
        "minicpm",
        "GraniteConfig",
        {**_GRANITE, "attention_multiplier": 0.25, "rope_parameters": _LONGROPE},
    ),
    "phimoe": (
        "phimoe",
        "PhimoeConfig",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "attention_bias": True,
            "lm_head_bias": True,
            "sliding_window": 200,
            "rope_parameters": {
                **_LONGROPE,
                "short_mscale": 1.243163121016122,
                "long_mscale": 1.243163121016122,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "exaone-moe": (
        "exaone-moe",
        "ExaoneMoeConfig",
        {
            **_EXPERTS,
            "num_shared_experts": 2,
            "first_k_dense_replace": 2,
            "n_group": 2,
            "sliding_window": 8,
            "routed_scaling_factor": 1.7,
        },
    ),
    "mimo2": (
        "mimo2",
        "MiMoV2FlashConfig",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "v_head_dim": 16,
            "sliding_window": 8,
            "attention_value_scale": 0.7,
            "layer_types": ["full_attention", *_TYPES[:3]],
            "rope_parameters": {
                "full_attention": {**_THIRD, "rope_theta": 50000.0},
                "sliding_attention": _THIRD,
            },
        },
    ),
    "glm-dsa": (
        "glm-dsa",
        "GlmMoeDsaConfig",
        {
            **_LATENT,
            "index_n_heads": 2,
            "index_head_dim": 16,
            "index_topk": 8,
            "indexer_types": ["full", "shared", "full", "shared"],
        },
    ),
    "deepseek32": (
        "deepseek32",
        "DeepseekV32Config",
        {**_LATENT, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8},
    ),
    "mellum": (
        "mellum",
        "MellumConfig",
        {
            **_EXPERTS,
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": _TYPES,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
                "full_attention": {**_YARN, "attention_factor": 1.2},
            },
        },
    ),
    "laguna": (
        "laguna",
        "LagunaConfig",
        {
            **_EXPERTS,
            "head_dim": 16,
            "sliding_window": 8,
            "num_attention_heads_per_layer": [4, 6, 6, 6],
            "shared_expert_intermediate_size": 48,
            "moe_routed_scaling_factor": 1.7,
            "layer_types": ["full_attention", *["sliding_attention"] * 3],
            "rope_parameters": {
                "sliding_attention": {**_THIRD, "partial_rotary_factor": 1.0},
                "full_attention": {**_YARN, "attention_factor": 1.2, "partial_rotary_factor": 0.5},
            },
        },
    ),
    "laguna-m": (
        "laguna",
        "LagunaConfig",
        {
            **_EXPERTS,
            "head_dim": 16,
            "sliding_window": 8,
            "gating": "per-element",
            "shared_expert_intermediate_size": 48,
            "layer_types": ["full_attention", *["sliding_attention"] * 3],
        },
    ),
    "exaone": ("exaone", "LlamaConfig", {"rope_parameters": _LLAMA3}),
    "minicpm3": (
        "minicpm3",
        "MiniCPM3Config",
        {
            **{key: value for key, value in _LATENT.items() if key not in _ROUTED},
            "rope_parameters": {
                **_LONGROPE,
                "long_factor": [1.5, 2.0, 3.0, 4.0],
                "short_factor": [1.0, 1.1, 1.2, 1.3],
            },
        },
    ),
    "kimi-linear": (
        "kimi-linear",
        "KimiLinearConfig",
        {
            **{key: value for key, value in _LATENT.items() if key not in _ROUTED},
            **_EXPERTS,
            "q_lora_rank": None,
            "n_shared_experts": 2,
            "routed_scaling_factor": 1.7,
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "layer_types": _DELTA_NET["layer_types"],
        },
    ),
    "jamba": (
        "jamba",
        "JambaConfig",
        {
            "num_experts": 4,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
    "gemma3n": (
        "gemma3n",
        "Gemma3nTextConfig",
        {
            "num_hidden_layers": 6,
            "head_dim": 16,
            "laurel_rank": 8,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 280,
            "num_kv_shared_layers": 2,
            "intermediate_size": [96] * 6,
            "activation_sparsity_pattern": [0.9] * 2 + [0.0] * 4,
            "sliding_window": 8,
            "layer_types": [*_TYPES, *_TYPES[:2]],
        },
    ),
    **LAYER_NORM_MODELS,
}
"""name: (architecture of the file, class of the config, its settings)"""


def converted_model(name: str, **changes: Any) -> Any:
    """Return a random float32 model in eval mode. No two of its weights are equal."""
    import transformers

    _, class_name, settings = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, class_name)(**{**COMMON, **settings, **changes})
    model_name = class_name.replace("TextConfig", "Config").replace("Config", "ForCausalLM")
    model_name = model_name.replace("GPT2ForCausalLM", "GPT2LMHeadModel")
    model = getattr(transformers, model_name)._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("A_log"):
                value.uniform_(0.0, 1.5)
            elif "norm" in key or key.endswith((".D", "layer_scalar", "scale")):
                value.add_(torch.randn_like(value) * 0.2)
            elif value.dim() > 1:
                value.normal_(0.0, 0.2)
            else:
                value.normal_(0.0, 0.3)
    return model.float().eval()
