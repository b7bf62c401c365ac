"""Models with random weights in published shapes, built on the device. They need no download."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from stonechat_models.model_info import ModelInfo


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's config: its class in transformers, and the attributes to set."""

    name: str
    config_class: str
    arguments: dict[str, Any] = field(default_factory=dict)
    codes: str = ""
    """Weights as stored: `q4_k_m`, as a GGUF file has them, or `fp8`, as a folder. Else floats."""


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
        Shape(  # three of four layers have gated delta rules, as the config's defaults say
            "qwen3.5-4b",
            "Qwen3_5TextConfig",
            {
                "vocab_size": 248320,
                "hidden_size": 2560,
                "intermediate_size": 9216,
                "num_hidden_layers": 32,
                "num_attention_heads": 16,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "tie_word_embeddings": True,
            },
        ),
        Shape(
            "lfm2-1.2b",
            "Lfm2Config",
            {
                "vocab_size": 65536,
                "hidden_size": 2048,
                "intermediate_size": 12288,
                "num_hidden_layers": 16,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "layer_types": [
                    "full_attention" if layer in (2, 5, 8, 10, 12, 14) else "conv"
                    for layer in range(16)
                ],
                "tie_word_embeddings": True,
            },
        ),
        Shape(  # small enough to start in seconds, with heads as kernels like them
            "small",
            "LlamaConfig",
            {
                "vocab_size": 32768,
                "hidden_size": 512,
                "intermediate_size": 1536,
                "num_hidden_layers": 4,
                "num_attention_heads": 8,
                "num_key_value_heads": 2,
                "head_dim": 64,
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
for _codes in ("q4_k_m", "fp8"):
    _name = f"llama-3.1-8b-{_codes}"
    SHAPES[_name] = replace(SHAPES["llama-3.1-8b"], name=_name, codes=_codes)


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


def put_codes(shape: Shape, module: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Replace the weights by random codes if the shape has codes."""
    if shape.codes:
        from tests.models import random_codes

        put = {"q4_k_m": random_codes.put_random_codes, "fp8": random_codes.put_random_float8}
        put[shape.codes](module, device, dtype)


def model_info(shape: Shape, module: Any, device: torch.device, dtype: torch.dtype) -> ModelInfo:
    from stonechat_models.backends.transformers.loading.quantize import weight_bytes

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


def step_bytes(module: torch.nn.Module) -> list[tuple[float, float]]:
    """Return what a step must read of the weights: (bytes, share of them that one token skips).

    A token skips the experts that it does not use. The input embedding does not count, since a
    step reads only single rows of it, unless it is the output layer too.
    """
    config: Any = module.config
    num_experts = getattr(config, "num_experts", None)
    idle = 1 - config.num_experts_per_tok / num_experts if num_experts else 0.0
    sizes = []
    for name, parameter in module.named_parameters():
        if "embed_tokens" not in name or config.tie_word_embeddings:
            size = float(parameter.numel() * parameter.element_size())
            sizes.append((size, idle if ".experts." in name else 0.0))
    return sizes


def quantised_step_bytes(module: Any) -> float:
    """Return what a step must read of quantised weights, all experts of a mixture included."""
    from stonechat_models.backends.transformers.loading.quantize import weight_bytes

    total = float(weight_bytes(module))
    if module.config.tie_word_embeddings:
        return total
    embedding = module.get_input_embeddings()
    return total - float(getattr(embedding, "num_bytes", embedding.weight.nbytes))


def attention_flops(module: torch.nn.Module) -> float:
    """Return the operations of a prefill's attention per token and token of the prompt.

    They are two products of two operations each, over half of the positions on average.
    """
    config: Any = module.config
    head_size = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    return float(2 * config.num_hidden_layers * config.num_attention_heads * head_size)


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
