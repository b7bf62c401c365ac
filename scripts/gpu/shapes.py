"""Models with random weights in published shapes, built on the device. They need no download."""

from dataclasses import dataclass, field
from typing import Any

import torch

from stonechat_models.types import ModelInfo


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's config: its class in transformers, and the attributes to set."""

    name: str
    config_class: str
    arguments: dict[str, Any] = field(default_factory=dict)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "qwen3-0.6b",
            "Qwen3Config",
            {
                "vocab_size": 151936,
                "hidden_size": 1024,
                "intermediate_size": 3072,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "tie_word_embeddings": True,
            },
        ),
        Shape(
            "llama-3.2-1b",
            "LlamaConfig",
            {
                "vocab_size": 128256,
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_hidden_layers": 16,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 64,
                "tie_word_embeddings": True,
            },
        ),
        Shape(
            "llama-3.1-8b",
            "LlamaConfig",
            {
                "vocab_size": 128256,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
            },
        ),
        Shape(  # Qwen3-30B-A3B with a quarter of its layers, to fit beside a KV cache
            "qwen3-30b-a3b-12-layers",
            "Qwen3MoeConfig",
            {
                "vocab_size": 151936,
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "moe_intermediate_size": 768,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "norm_topk_prob": True,
                "num_hidden_layers": 12,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
                "head_dim": 128,
            },
        ),
        Shape(
            "tiny",
            "LlamaConfig",
            {
                "vocab_size": 2048,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
            },
        ),
    )
}


def build_module(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the model in eval mode, with weights drawn on the device from a fixed seed."""
    import transformers

    config = getattr(transformers, shape.config_class)(
        max_position_embeddings=32768, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    for name, value in shape.arguments.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    with device:
        module = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="eager"
        )
    return module.eval().requires_grad_(False)


def model_info(shape: Shape, module: Any, device: torch.device, dtype: torch.dtype) -> ModelInfo:
    from stonechat_models.backends.transformers.quantize import weight_bytes

    return ModelInfo(
        name=shape.name,
        architecture=type(module).__name__,
        vocab_size=module.config.vocab_size,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        quantization="none",
        backend="transformers",
        num_parameters=sum(p.numel() for p in module.parameters()),
        weight_bytes=weight_bytes(module),
        weights_hash="random",
        block_size=16,
        threads=1,
    )


def bytes_of_a_step(module: torch.nn.Module, num_tokens: int) -> float:
    """Return the bytes of weights that a step of `num_tokens` must read.

    For a mixture of experts this is the expected number. The input embedding does not count, since
    a step reads only single rows of it, unless it is the output layer too.
    """
    from stonechat_models.backends.quantization.linear import QuantizedLinear

    config: Any = module.config
    num_experts = getattr(config, "num_experts", None)
    expert_share = 1.0
    if num_experts:
        expert_share = 1 - (1 - config.num_experts_per_tok / num_experts) ** num_tokens
    total = 0.0
    for name, parameter in module.named_parameters():
        if "embed_tokens" in name and not config.tie_word_embeddings:
            continue
        size = parameter.numel() * parameter.element_size()
        total += size * (expert_share if ".experts." in name else 1.0)
    for name, part in module.named_modules():
        if isinstance(part, QuantizedLinear):
            total += part.num_bytes * (expert_share if ".experts" in name else 1.0)
    return total


def matmul_parameters(module: torch.nn.Module) -> float:
    """Return the number of parameters that multiply each token of a prefill.

    The output layer does not count, because it computes one row only.
    """
    config: Any = module.config
    share = 1.0
    if getattr(config, "num_experts", None):
        share = config.num_experts_per_tok / config.num_experts
    return sum(
        parameter.numel() * (share if ".experts." in name else 1.0)
        for name, parameter in module.named_parameters()
        if "embed_tokens" not in name and "lm_head" not in name
    )
