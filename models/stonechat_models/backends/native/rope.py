"""Rotary frequencies, as `transformers.modeling_rope_utils` computes them.

The common types are computed here, without the seconds that importing transformers takes.
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
    """Frequencies float32[rotary_dim / 2], and the factor that cosines and sines are scaled by."""

    inverse_frequencies: Frequencies
    scale: float


def rotary_frequencies(
    config: dict[str, Any], head_dim: int, theta: float = 10000.0, layer_type: str | None = None
) -> Rotary:
    """Of layers of `layer_type`, where they differ. `theta`: the base if the config has none.

    Raises `UnsupportedModelError` for types whose frequencies depend on the length at hand.
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
    raise UnsupportedModelError(f"rotary embeddings of type {kind} are not compiled")


def _parameters(config: dict[str, Any], layer_type: str | None) -> dict[str, Any]:
    """The entry for `layer_type`. Older files have none, and Gemma 3's local base beside it all."""
    rope = dict(config.get("rope_parameters") or {})
    nested = any(isinstance(value, dict) for value in rope.values())
    if nested and layer_type is not None:
        return dict(rope.get(layer_type) or {})
    if nested:
        raise UnsupportedModelError("rotary embeddings that differ between layers are not compiled")
    if layer_type == LOCAL:
        return {"rope_theta": config.get("rope_local_base_freq", 10000.0)}
    return rope or dict(config.get("rope_scaling") or {})


def _base(theta: float, rotary_dim: int) -> Frequencies:
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    return np.asarray(1.0 / np.power(np.float32(theta), exponents), dtype=np.float32)


def _llama3(base: Frequencies, rope: dict[str, Any]) -> Frequencies:
    """Long wavelengths are stretched by `factor`, short ones kept, those between are blended."""
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
