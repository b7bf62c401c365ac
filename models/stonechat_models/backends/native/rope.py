"""Rotary frequencies, as `transformers.modeling_rope_utils` computes them.

The common types are computed here, because importing transformers takes seconds.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stonechat_models.errors import UnsupportedModelError

LOCAL, GLOBAL = "sliding_attention", "full_attention"
Frequencies = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rotary:
    """Frequencies float32[rotary_dim / 2], and a factor that multiplies all cosines and sines."""

    inverse_frequencies: Frequencies
    scale: float


def rotary_frequencies(
    config: dict[str, Any], head_dim: int, theta: float = 10000.0, layer_type: str | None = None
) -> Rotary:
    """Return the frequencies of the layers of `layer_type`, or of all layers if it is None.

    `theta` is the base if the config has none. Raises `UnsupportedModelError` for a type that is
    not implemented here, such as one whose frequencies depend on the sequence's length.
    """
    rope = _parameters(config, layer_type)
    rope.setdefault("rope_theta", config.get("rope_theta", theta))
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    rotary_dim = int(head_dim * float(partial or 1.0))
    if rotary_dim % 2:
        raise UnsupportedModelError("its rotary embedding covers an odd number of dimensions")
    base = _base(float(rope["rope_theta"]), rotary_dim)
    if kind == "default":
        return Rotary(base, 1.0)
    if kind == "linear":
        return Rotary((base / np.float32(rope["factor"])).astype(np.float32), 1.0)
    if kind == "llama3":
        return Rotary(_llama3(base, rope), 1.0)
    if kind == "yarn" and layer_type is None:
        return _through_transformers(config, kind)
    raise UnsupportedModelError(
        f"rotary embeddings of type {kind} are not supported by the native backend"
    )


def _parameters(config: dict[str, Any], layer_type: str | None) -> dict[str, Any]:
    """The RoPE parameters of `layer_type`.

    Older files have no entry per layer type. There `rope_local_base_freq` is Gemma 3's local base.
    """
    rope = dict(config.get("rope_parameters") or {})
    nested = any(isinstance(value, dict) for value in rope.values())
    if nested and layer_type is not None:
        return dict(rope.get(layer_type) or {})
    if nested:
        raise UnsupportedModelError(
            "rotary embeddings that differ by layer are not supported by the native backend"
        )
    if layer_type == LOCAL:
        return {"rope_theta": config.get("rope_local_base_freq", 10000.0)}
    return rope or dict(config.get("rope_scaling") or {})


def _base(theta: float, rotary_dim: int) -> Frequencies:
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    return np.asarray(1.0 / np.power(np.float32(theta), exponents), dtype=np.float32)


def _llama3(base: Frequencies, rope: dict[str, Any]) -> Frequencies:
    """Stretch long wavelengths by `factor`, keep short ones, and blend those in between."""
    factor = float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    context = float(rope["original_max_position_embeddings"])
    wavelengths = 2 * math.pi / base
    blend = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    scaled = (1 - blend) * base / factor + blend * base
    return np.asarray(scaled, dtype=np.float32)


def _through_transformers(config: dict[str, Any], kind: str) -> Rotary:
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    values = {key: value for key, value in config.items() if key != "model_type"}
    typed = AutoConfig.for_model(config["model_type"], **values)
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](typed, "cpu")
    return Rotary(np.asarray(frequencies.float(), dtype=np.float32), float(scale))
