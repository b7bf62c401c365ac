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


def tiny_config(family: str, **changes: Any) -> Any:
    import transformers

    name, settings = FAMILIES[family]
    return getattr(transformers, name)(**{**COMMON, **settings, **changes})


def tiny_model(family: str, seed: int = 0, **changes: Any) -> torch.nn.Module:
    """Return a float32 model in eval mode. Its large weights make the greedy output varied."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = tiny_config(family, **changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3 if "embed" in name else 0.25)
    return model.float()


def save_tiny_model(folder: Path, family: str, tokenizer_folder: Path, **changes: Any) -> Path:
    """Save a tiny model, with the tokenizer of another model, in the new folder `folder`."""
    weights = shutil.ignore_patterns("*.safetensors", "*.gguf")
    shutil.copytree(tokenizer_folder, folder, ignore=weights)
    tiny_model(family, **changes).save_pretrained(folder)  # type: ignore[operator]
    return folder
