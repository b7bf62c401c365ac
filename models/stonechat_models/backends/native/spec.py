"""What the native backend needs to know about a model, read from its config.json."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.native.bindings import GROUP, Activation
from stonechat_models.backends.native.families import (
    FAMILIES,
    Experts,
    Family,
    Scales,
    read_experts,
    read_scales,
)
from stonechat_models.backends.native.rope import GLOBAL, LOCAL, Rotary, rotary_frequencies
from stonechat_models.errors import UnsupportedModelError

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}
MAX_HEAD_DIM = 256
MAX_HEADS_PER_GROUP = 32


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes, constants and per-layer attention settings of a decoder like Llama."""

    model_type: str
    family: Family
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    scales: Scales
    activation: Activation
    tied: bool
    rotary: tuple[Rotary, ...]
    """Tables of rotary frequencies, all of the same size."""
    windows: tuple[int, ...]
    """For each layer: the number of keys that a query sees, its own included; 0 means all."""
    rotary_tables: tuple[int, ...]
    """For each layer: the index of its table in `rotary`; -1 means no rotary embedding."""
    experts: Experts | None

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def inverse_frequencies(self) -> npt.NDArray[np.float32]:
        """float32[tables, rotary_dim / 2]"""
        return np.stack([table.inverse_frequencies for table in self.rotary])

    def has_experts(self, layer: int) -> bool:
        """True if the layer's feed-forward block is a mixture of experts."""
        return self.experts is not None and self.experts.layers[layer]


def read_spec(config: dict[str, Any]) -> ModelSpec:
    """Read the spec of a model.

    Raises `UnsupportedModelError` with the reason if the native backend cannot serve the model.
    """
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"models of type {model_type} are not supported by the native backend"
        )
    if config.get("use_bidirectional_attention"):
        raise UnsupportedModelError(
            "attention in both directions is not supported by the native backend"
        )
    family = FAMILIES[model_type]
    num_layers = _size(config, "num_hidden_layers")
    hidden_size, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    head_dim = int(config.get("head_dim") or family.head_dim or hidden_size // heads)
    experts = read_experts(config, model_type, num_layers)
    is_mixture = experts is not None and all(experts.layers)
    rotary, tables = _rotary(config, model_type, head_dim, num_layers)
    spec = ModelSpec(
        model_type=model_type,
        family=family,
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        intermediate_size=GROUP if is_mixture else _size(config, "intermediate_size"),
        vocab_size=_size(config, "vocab_size"),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        scales=read_scales(config, model_type, head_dim),
        activation=_activation(config, model_type),
        tied=bool(config.get("tie_word_embeddings", family.tied)),
        rotary=rotary,
        windows=_windows(config, model_type, num_layers),
        rotary_tables=tables,
        experts=experts,
    )
    _check_sizes(spec)
    return spec


def _size(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise UnsupportedModelError(f"its config has no positive integer {key}")
    return value


def _activation(config: dict[str, Any], model_type: str) -> Activation:
    family = FAMILIES[model_type]
    key = "hidden_activation" if model_type in ("gemma2", "gemma3_text") else "hidden_act"
    name = config.get(key, family.activation)
    if name not in ACTIVATIONS or (family.has_experts and ACTIVATIONS[name] != Activation.SILU):
        raise UnsupportedModelError(f"the activation {name} is not supported by the native backend")
    return ACTIVATIONS[name]


def _check_sizes(spec: ModelSpec) -> None:
    for name in ("hidden_size", "head_dim", "intermediate_size"):
        if getattr(spec, name) % GROUP:
            raise UnsupportedModelError(f"its {name} is not a multiple of {GROUP}")
    if spec.head_dim > MAX_HEAD_DIM:
        raise UnsupportedModelError(f"its head_dim is above {MAX_HEAD_DIM}")
    if spec.num_heads % spec.num_kv_heads:
        raise UnsupportedModelError("its number of query heads is not a multiple of its key heads")
    if spec.num_heads // spec.num_kv_heads > MAX_HEADS_PER_GROUP:
        raise UnsupportedModelError(f"more than {MAX_HEADS_PER_GROUP} query heads share a key head")
    if spec.experts is not None and any(spec.experts.layers):
        _check_experts(spec.experts)


def _check_experts(experts: Experts) -> None:
    if experts.size % GROUP:
        raise UnsupportedModelError(f"its experts' size is not a multiple of {GROUP}")
    if not 0 < experts.per_token <= experts.count:
        raise UnsupportedModelError(
            "its experts per token are fewer than 1 or more than its experts"
        )


def _windows(config: dict[str, Any], model_type: str, num_layers: int) -> tuple[int, ...]:
    """The window of each layer, as transformers' configuration classes decide it."""
    default = 4096 if model_type in ("gemma2", "gemma3_text") else 0
    window = int(config.get("sliding_window", default) or 0)
    needs_flag = FAMILIES[model_type].window_needs_flag
    windowless = model_type in ("llama", "gemma", "granite", "olmo2")
    if windowless or not window or (needs_flag and not config.get("use_sliding_window")):
        return (0,) * num_layers
    if model_type in ("gemma2", "gemma3_text"):
        kinds = _layer_types(config, model_type, num_layers)
        return tuple(window if kind == LOCAL else 0 for kind in kinds)
    if model_type in ("mixtral", "qwen3_moe"):
        return (window,) * num_layers
    layer_types = config.get("layer_types")
    if layer_types:
        return tuple(window if kind == "sliding_attention" else 0 for kind in layer_types)
    if model_type in ("qwen2", "qwen3"):
        num_full_layers = int(config.get("max_window_layers", 28))
        return tuple(window if i >= num_full_layers else 0 for i in range(num_layers))
    if model_type == "smollm3":
        tables = _smollm3_tables(config, num_layers)
        return tuple(window if table >= 0 else 0 for table in tables)
    return (window,) * num_layers


def _layer_types(config: dict[str, Any], model_type: str, num_layers: int) -> list[str]:
    """The layer types of Gemma 2 and 3: every second or every sixth layer sees all keys."""
    if config.get("layer_types"):
        return list(config["layer_types"])
    period = 2 if model_type == "gemma2" else int(config.get("sliding_window_pattern", 6))
    return [LOCAL if (i + 1) % period else GLOBAL for i in range(num_layers)]


def _rotary(
    config: dict[str, Any], model_type: str, head_dim: int, num_layers: int
) -> tuple[tuple[Rotary, ...], tuple[int, ...]]:
    theta = FAMILIES[model_type].theta
    if model_type == "gemma3_text":
        kinds = _layer_types(config, model_type, num_layers)
        tables = tuple(
            rotary_frequencies(config, head_dim, theta, kind) for kind in (LOCAL, GLOBAL)
        )
        return tables, tuple((LOCAL, GLOBAL).index(kind) for kind in kinds)
    single_table = (rotary_frequencies(config, head_dim, theta),)
    if model_type == "smollm3":
        return single_table, _smollm3_tables(config, num_layers)
    return single_table, (0,) * num_layers


def _smollm3_tables(config: dict[str, Any], num_layers: int) -> tuple[int, ...]:
    flags = config.get("no_rope_layers")  # 1: has a rotary embedding, despite the name
    if flags:
        return tuple(0 if flag else -1 for flag in flags)
    interval = int(config.get("no_rope_layer_interval") or 4)
    return tuple(0 if (i + 1) % interval else -1 for i in range(num_layers))
