"""Rotary frequencies, as `transformers.modeling_rope_utils` computes them.

The common types are computed here, because importing transformers takes seconds.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stonechat_models.checkpoint.hf_config import HFConfig, JsonObject
from stonechat_models.checkpoint.rope_length import original_length, rope_type
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.model_file import reading

LOCAL, GLOBAL = "sliding_attention", "full_attention"
Frequencies = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rotary:
    """Frequencies float32[rotary_dim / 2], and a factor that multiplies all cosines and sines."""

    inverse_frequencies: Frequencies
    scale: float


@dataclass(frozen=True, slots=True)
class RopeAxes:
    """M-RoPE: each frequency rotates by a token's position in time, in height or in width."""

    sections: tuple[int, int, int]
    """How many frequencies the three have if the config does not say."""
    interleaved: bool = False
    """Every third frequency is one of the height or of the width, as far as these have any; the
    others are those of time. Else the sections lie behind each other."""

    def of(self, rope: JsonObject, count: int) -> npt.NDArray[np.int32]:
        """Return the axis of each of `count` frequencies: 0 time, 1 height, 2 width.

        Raises `ModelLoadError` for sections that do not fit.
        """
        sections = rope.read("mrope_section", list[int], list(self.sections))
        fits = len(sections) == 3 and min(sections) >= 0
        if not fits or not (self.interleaved or sum(sections) == count):
            raise rope.error("mrope_section", f"is {sections} for {count} frequencies")
        if not self.interleaved:
            return np.repeat(np.arange(3, dtype=np.int32), sections)
        axes = np.zeros(count, dtype=np.int32)
        for axis in (1, 2):
            axes[axis : 3 * sections[axis] : 3] = axis
        return axes


def rotary_frequencies(
    config: HFConfig,
    head_dim: int,
    theta: float = 10000.0,
    layer_type: str | None = None,
    share: float | None = None,
) -> Rotary:
    """Return the frequencies of the layers of `layer_type`, or of all layers if it is None.

    `theta` is the base, and `share` the part of a head that is rotated, if the config does not
    say; None: models of its type rotate whole heads. Raises `UnsupportedModelError` for a type that
    is not implemented here, such as one whose frequencies depend on the sequence's length.
    """
    rope = _parameters(config, layer_type)
    kind = rope_type(config, rope)
    partial = config.keys.read("partial_rotary_factor", float, share or 1.0)
    partial = rope.read("partial_rotary_factor", float, partial)
    if share is None and partial != 1.0:
        raise UnsupportedModelError("models of its type do not rotate a part of each head")
    rotary_dim = int(head_dim * partial)
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise UnsupportedModelError(
            f"its rotary embedding covers {rotary_dim} dimensions of heads of size {head_dim}; "
            "it must be an even number from 2 to that size"
        )
    theta = rope.positive("rope_theta", float, config.keys.positive("rope_theta", float, theta))
    with np.errstate(all="ignore"):
        rotary = _of_kind(kind, config, rope, _base(theta, rotary_dim), layer_type)
    numbers = np.append(rotary.inverse_frequencies, np.float32(rotary.scale))
    if numbers.size != rotary_dim // 2 + 1 or not np.isfinite(numbers).all():
        raise UnsupportedModelError("its rotary frequencies are not finite numbers")
    return rotary


def _of_kind(
    kind: str, config: HFConfig, rope: JsonObject, base: Frequencies, layer_type: str | None
) -> Rotary:
    if kind == "default":
        return Rotary(base, 1.0)
    if kind == "linear":
        return Rotary((base / np.float32(rope.positive("factor", float))).astype(np.float32), 1.0)
    if kind == "llama3":
        return Rotary(_llama3(base, rope), 1.0)
    if kind == "longrope":
        return _longrope(base, config, rope)
    if kind == "yarn" and layer_type is None:
        return _through_transformers(config, kind)
    raise UnsupportedModelError(
        f"rotary embeddings of type {kind} are not supported by the native backend"
    )


def _parameters(config: HFConfig, layer_type: str | None) -> JsonObject:
    """The RoPE parameters of `layer_type`.

    Older files have no entry per layer type. `rope_local_base_freq` is Gemma 3's local base where
    no entry says it.
    """
    if config.rope.sections():
        if layer_type is None:
            raise UnsupportedModelError(
                "rotary embeddings that differ by layer are not supported by the native backend"
            )
        own = config.rope.section(layer_type)
    else:
        own = JsonObject(config.keys.source, {}) if layer_type == LOCAL else config.rope
    if layer_type != LOCAL or own.values.get("rope_theta") is not None:
        return own
    local = config.keys.read("rope_local_base_freq", float, 10000.0)
    return JsonObject(own.source, {**own.values, "rope_theta": local})


def _base(theta: float, rotary_dim: int) -> Frequencies:
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    return np.asarray(1.0 / np.power(np.float32(theta), exponents), dtype=np.float32)


def _llama3(base: Frequencies, rope: JsonObject) -> Frequencies:
    """Stretch long wavelengths by `factor`, keep short ones, and blend those in between."""
    factor = rope.positive("factor", float)
    low, high = rope.positive("low_freq_factor", float), rope.positive("high_freq_factor", float)
    if low >= high:
        raise rope.error("low_freq_factor", "is not below high_freq_factor")
    context = rope.positive("original_max_position_embeddings", float)
    wavelengths = 2 * math.pi / base
    blend = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    scaled = (1 - blend) * base / factor + blend * base
    return np.asarray(scaled, dtype=np.float32)


def _longrope(base: Frequencies, config: HFConfig, rope: JsonObject) -> Rotary:
    """Divide by the short factors, which are the long ones if `for_length` has put them there."""
    factors = np.asarray(rope.read("short_factor", list[float]), dtype=np.float32)
    if factors.size != base.size:
        raise rope.error("short_factor", f"has {factors.size} items for {base.size} frequencies")
    original = original_length(config, rope)
    stretch = (config.max_position_embeddings or original) / original
    stretch = rope.positive("factor", float, stretch)
    scale = 1.0 if stretch <= 1 else float(np.sqrt(1 + np.log(stretch) / np.log(original)))
    return Rotary(base / factors, rope.positive("attention_factor", float, scale))


def _through_transformers(config: HFConfig, kind: str) -> Rotary:
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    values = {key: value for key, value in config.raw.items() if key != "model_type"}
    with reading(config.keys.source):
        typed = AutoConfig.for_model(config.model_type, **values).get_text_config()
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](typed, "cpu")
    return Rotary(np.asarray(frequencies.float(), dtype=np.float32), float(scale))
