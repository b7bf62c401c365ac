"""Tiny random models of several families, built from configs without a download."""

import shutil
from pathlib import Path
from typing import Any

import torch

VOCAB_SIZE = 211

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": 12}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 16, "sliding_window": 12, "query_pre_attn_scalar": 16},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 16,
            "sliding_window": 12,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi3": ("Phi3Config", {}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "sliding_window": None}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "gpt_oss": (
        "GptOssConfig",
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 12},
    ),
}
CHUNKED_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama4_text": (
        "Llama4TextConfig",
        {
            "num_hidden_layers": 3,
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 2,
            "num_local_experts": 4,
            "attention_chunk_size": 13,
            "no_rope_layers": [1, 0, 1],
            "floor_scale": 7,
            "attn_scale": 0.5,
        },
    ),
}
"""Families with chunked attention. Their other layers scale queries by position."""
_DELTA_NET = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "mamba_n_groups": 1,
}
RECURRENT_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5_text": ("Qwen3_5TextConfig", {"head_dim": 16, **_DELTA_NET}),
    "lfm2": (
        "Lfm2Config",
        {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    ),
    "falcon_h1": ("FalconH1Config", {**_MAMBA, "mamba_d_ssm": 64}),
    "qwen3_next": (
        "Qwen3NextConfig",
        {"head_dim": 16, "shared_expert_intermediate_size": 24, **_DELTA_NET, **_EXPERTS},
    ),
    "qwen3_5_moe_text": (
        "Qwen3_5MoeTextConfig",
        {"head_dim": 16, "shared_expert_intermediate_size": 24, **_DELTA_NET, **_EXPERTS},
    ),
    "olmo_hybrid": ("OlmoHybridConfig", _DELTA_NET),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {
            **_MAMBA,
            "num_hidden_layers": 3,
            "layer_types": ["mamba", "attention", "mamba"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 24,
        },
    ),
    "bamba": ("BambaConfig", {**_MAMBA, "num_hidden_layers": 3, "attn_layer_indices": [1]}),
    "nemotron_h": (
        "NemotronHConfig",
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "attention", "mamba", "moe"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 24,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "kimi_linear": (
        "KimiLinearConfig",
        {
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "num_experts": 4,
            "num_experts_per_token": 2,
            "moe_intermediate_size": 24,
            "kv_lora_rank": 16,
            "q_lora_rank": None,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "linear_attn_config": {
                "head_dim": 8,
                "num_heads": 4,
                "short_conv_kernel_size": 4,
                "kda_layers": [1, 3],
                "full_attn_layers": [2],
            },
        },
    ),
    "mamba2": (
        "Mamba2Config",
        {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    ),
}
"""Families with layers that keep a recurrent state."""
WHOLE_PROMPT_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaConfig", {"state_size": 8}),
    "jamba": (
        "JambaConfig",
        {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
}
"""Families whose recurrent layers compute a prompt in one piece."""
PLAIN_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomConfig", {"n_layer": 2, "n_head": 4}),
    "openai-gpt": ("OpenAIGPTConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "gptj": ("GPTJConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    "stablelm": ("StableLmConfig", {}),
    "rwkv": ("RwkvConfig", {"context_length": 256}),
    "minimax": (
        "MiniMaxConfig",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "num_local_experts": 4,
            "head_dim": 16,
            "block_size": 8,
        },
    ),
    "phimoe": ("PhimoeConfig", {"num_local_experts": 4, "sliding_window": 16}),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 32, "head_dim": 8},
    ),
}
"""Families that run with their own cache, or without one."""
_SHARED_EXPERT = {"shared_expert_intermediate_size": 24}
_GROUPS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_moe": ("Qwen2MoeConfig", {**_EXPERTS, **_SHARED_EXPERT}),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": ("GraniteMoeConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "glm4_moe": ("Glm4MoeConfig", {"head_dim": 16, **_GROUPS, "n_group": 1}),
    "deepseek_v2": ("DeepseekV2Config", {**_LATENT, **_GROUPS, "topk_method": "greedy"}),
    "deepseek_v3": ("DeepseekV3Config", {**_LATENT, **_GROUPS}),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig",
        {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24},
    ),
}
"""More mixtures of experts, whose routers differ."""
ALL_FAMILIES = {
    **FAMILIES,
    **MIXTURES,
    **CHUNKED_FAMILIES,
    **RECURRENT_FAMILIES,
    **WHOLE_PROMPT_FAMILIES,
    **PLAIN_FAMILIES,
}


def tiny_config(family: str, **changes: Any) -> Any:
    import transformers

    name, settings = ALL_FAMILIES[family]
    return getattr(transformers, name)(**{**COMMON, **settings, **changes})


def tiny_model(family: str, seed: int = 0, **changes: Any) -> torch.nn.Module:
    """Return a float32 model in eval mode. Its large weights make the greedy output varied."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = tiny_config(family, **changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not name.endswith("A_log"):
                parameter.normal_(0.0, 0.3 if "embed" in name else 0.25)
    return model.float()


def save_tiny_model(folder: Path, family: str, tokenizer_folder: Path, **changes: Any) -> Path:
    """Save a tiny model, with the tokenizer of another model, in the new folder `folder`."""
    weights = shutil.ignore_patterns("*.safetensors", "*.gguf")
    shutil.copytree(tokenizer_folder, folder, ignore=weights)
    tiny_model(family, **changes).save_pretrained(folder)  # type: ignore[operator]
    return folder
