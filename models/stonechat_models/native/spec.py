"""What the compiled path needs to know of a model, read from its config.json."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stonechat_models.errors import UnsupportedModelError
from stonechat_models.native.library import GROUP
from stonechat_models.native.rope import rotary_frequencies

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3"})
MAX_HEAD_DIM = 256
MAX_HEADS_PER_GROUP = 32


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes, constants and per-layer attention of a decoder of the Llama family."""

    model_type: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    attention_scale: float
    tied: bool
    inverse_frequencies: npt.NDArray[np.float32]
    rotary_scale: float
    windows: tuple[int, ...]
    """Keys that a query of each layer sees, itself included; 0: all."""
    rotary_layers: tuple[bool, ...]

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


def read_spec(config: dict[str, Any]) -> ModelSpec:
    """Raises `UnsupportedModelError` with the reason when the compiled path cannot serve it."""
    model_type = str(config.get("model_type"))
    if model_type not in MODEL_TYPES:
        raise UnsupportedModelError(f"models of type {model_type} are not compiled")
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(f"the activation {activation} is not compiled")
    num_layers = _size(config, "num_hidden_layers")
    hidden_size, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    head_dim = int(config.get("head_dim") or hidden_size // heads)
    rope = rotary_frequencies(config, head_dim)
    spec = ModelSpec(
        model_type=model_type,
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        intermediate_size=_size(config, "intermediate_size"),
        vocab_size=_size(config, "vocab_size"),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        attention_scale=head_dim**-0.5,
        tied=bool(config.get("tie_word_embeddings", model_type == "smollm3")),
        inverse_frequencies=rope.inverse_frequencies,
        rotary_scale=rope.scale,
        windows=_windows(config, model_type, num_layers),
        rotary_layers=_rotary_layers(config, model_type, num_layers),
    )
    _check_sizes(spec)
    return spec


def _size(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise UnsupportedModelError(f"its config has no {key}")
    return value


def _check_sizes(spec: ModelSpec) -> None:
    for name in ("hidden_size", "head_dim", "intermediate_size"):
        if getattr(spec, name) % GROUP:
            raise UnsupportedModelError(f"its {name} is no multiple of {GROUP}")
    if spec.head_dim > MAX_HEAD_DIM:
        raise UnsupportedModelError(f"its head_dim is above {MAX_HEAD_DIM}")
    if spec.num_heads % spec.num_kv_heads:
        raise UnsupportedModelError("its query heads are no multiple of its key heads")
    if spec.num_heads // spec.num_kv_heads > MAX_HEADS_PER_GROUP:
        raise UnsupportedModelError(f"more than {MAX_HEADS_PER_GROUP} query heads share a key head")


def _windows(config: dict[str, Any], model_type: str, num_layers: int) -> tuple[int, ...]:
    """As transformers' configuration classes decide it."""
    window = int(config.get("sliding_window") or 0)
    uses_flag = model_type in ("qwen2", "qwen3", "smollm3")
    if model_type == "llama" or not window or (uses_flag and not config.get("use_sliding_window")):
        return (0,) * num_layers
    layer_types = config.get("layer_types")
    if layer_types:
        return tuple(window if kind == "sliding_attention" else 0 for kind in layer_types)
    if model_type in ("qwen2", "qwen3"):
        full = int(config.get("max_window_layers", 28))
        return tuple(window if i >= full else 0 for i in range(num_layers))
    if model_type == "smollm3":
        rotary = _rotary_layers(config, model_type, num_layers)
        return tuple(window if uses_rope else 0 for uses_rope in rotary)
    return (window,) * num_layers


def _rotary_layers(config: dict[str, Any], model_type: str, num_layers: int) -> tuple[bool, ...]:
    if model_type != "smollm3":
        return (True,) * num_layers
    flags = config.get("no_rope_layers")  # 1: with rotary embedding, despite the name
    if flags:
        return tuple(bool(flag) for flag in flags)
    interval = int(config.get("no_rope_layer_interval") or 4)
    return tuple((i + 1) % interval != 0 for i in range(num_layers))
