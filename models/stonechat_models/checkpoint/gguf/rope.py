"""Reads the rotary embedding (RoPE) of a GGUF file as transformers describes it."""

import numpy as np

from stonechat_models.checkpoint.gguf.metadata import Config, integer, number, positive, refusal
from stonechat_models.checkpoint.gguf.reader import GgufFile
from stonechat_models.checkpoint.hf_config import MAX_FLOAT32

LLAMA3_CONTEXT = 8192
LLAMA3_BANDS = ((1.0, 4.0), (1.0, 1.0))
"""The pairs of `low_freq_factor` and `high_freq_factor` of published models."""
UNROTATED = 1e20
"""A frequency divided by at least this does not rotate."""
YARN_KEYS = {
    "attention_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}
CONFIG_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that only the configuration is read from."""


def rope_of(gguf: GgufFile) -> Config:
    """Return `rope_parameters`. Raises `UnsupportedModelError` if they cannot be exact."""
    theta = positive(gguf, "rope.freq_base", 10000.0)
    factor = _scale(gguf)
    kind = gguf.value("rope.scaling.type")
    if kind is None and factor not in (None, 1.0):
        kind = "linear"
    if number(gguf, "rope.scaling.attn_factor", 1.0) != 1.0:
        raise refusal(gguf, "its attention factor is not 1")
    if CONFIG_TENSORS[0] in gguf.tensors:
        if kind not in (None, "none") and factor not in (None, 1.0):
            raise refusal(gguf, "it has RoPE frequencies, and a scaling of them")
        return {"rope_theta": theta, **_llama3(gguf, theta)}
    if any(name.startswith("rope_factors") for name in gguf.tensors):
        raise refusal(gguf, "RoPE scaling with factors for long contexts is not supported")
    if kind in (None, "none"):
        return {"rope_theta": theta, "rope_type": "default"}
    if kind not in ("linear", "yarn"):
        raise refusal(gguf, f"RoPE scaling of type {kind} is not supported")
    if factor is None:
        raise refusal(gguf, "rope.scaling.factor is missing")
    rope: Config = {"rope_theta": theta, "rope_type": kind, "factor": factor}
    if kind == "yarn":
        rope |= _yarn(gguf)
    return rope


def _scale(gguf: GgufFile) -> float | None:
    """Return by what positions are divided, from its key or the older one. None: by nothing.

    As in llama.cpp, 0 stands for nothing. A file without a type of scaling divides too.
    """
    keys = ("rope.scaling.factor", "rope.scale_linear")
    key = next((key for key in keys if gguf.value(key) is not None), None)
    return None if key is None or number(gguf, key) == 0 else positive(gguf, key)


def _yarn(gguf: GgufFile) -> Config:
    rope: Config = {
        name: positive(gguf, f"rope.scaling.{key}")
        for name, key in YARN_KEYS.items()
        if gguf.value(f"rope.scaling.{key}") is not None
    }
    if number(gguf, "rope.scaling.yarn_ext_factor", 1.0) != 1.0:
        raise refusal(gguf, "its YaRN extrapolation factor is not 1")
    key = "rope.scaling.original_context_length"
    return {"original_max_position_embeddings": integer(gguf, key), **rope}


def _factors(gguf: GgufFile, name: str) -> np.ndarray:
    """Return the divisors of all frequencies in a tensor, as float64."""
    tensor, count = gguf.tensors[name], _rotary_dim(gguf) // 2
    if tensor.shape != (count,):
        shape = "x".join(map(str, tensor.shape))
        raise refusal(gguf, f"{name} has {shape} divisors for {count} RoPE frequencies")
    if tensor.type_name != "F32":
        raise refusal(gguf, "its RoPE frequencies are not float32")
    divisors: np.ndarray = tensor.data.view(np.float32).astype(np.float64).reshape(-1)
    if not (divisors.min() > 0 and divisors.max() <= MAX_FLOAT32):
        raise refusal(gguf, "its RoPE frequencies are not finite numbers above 0")
    return divisors


def _rotary_dim(gguf: GgufFile) -> int:
    """Return how many dimensions of a head are rotated."""
    for key in ("rope.dimension_count", "attention.key_length"):
        if gguf.value(key) is not None:
            return integer(gguf, key)
    return integer(gguf, "embedding_length") // integer(gguf, "attention.head_count")


def _llama3(gguf: GgufFile, theta: float) -> Config:
    """Recover Llama 3's RoPE scaling from the divisors in the file, and check them."""
    divisors = _factors(gguf, CONFIG_TENSORS[0])
    wavelengths = 2 * np.pi * theta ** (np.arange(divisors.size) / divisors.size)
    factor = float(divisors.max())
    for low, high in LLAMA3_BANDS:
        if low == high:
            smooth = (wavelengths < LLAMA3_CONTEXT / high).astype(np.float64)
        else:
            smooth = np.clip((LLAMA3_CONTEXT / wavelengths - low) / (high - low), 0.0, 1.0)
        if np.allclose(divisors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": LLAMA3_CONTEXT,
            }
    raise refusal(gguf, "its RoPE frequencies are not those of Llama 3's scaling")


def longrope_of(gguf: GgufFile) -> Config:
    """Return `rope_parameters` with divisors for short and for long contexts, or without."""
    long, short = CONFIG_TENSORS[1:]
    if long not in gguf.tensors or short not in gguf.tensors:
        return rope_of(gguf)
    factors = {"long_factor": _factors(gguf, long), "short_factor": _factors(gguf, short)}
    context = integer(gguf, "context_length")
    original = integer(gguf, "rope.scaling.original_context_length", context)
    rope: Config = {
        "rope_theta": positive(gguf, "rope.freq_base", 10000.0),
        "rope_type": "longrope",
        "original_max_position_embeddings": original,
    }
    return rope | {name: [float(str(np.float32(f))) for f in v] for name, v in factors.items()}


def proportional_of(gguf: GgufFile) -> Config:
    """Return `rope_parameters` of a head of which only the first frequencies rotate."""
    theta = positive(gguf, "rope.freq_base", 1e6)
    if _scale(gguf) not in (None, 1.0) and gguf.value("rope.scaling.type") != "none":
        raise refusal(gguf, "RoPE scaling of this architecture is not supported")
    if CONFIG_TENSORS[0] not in gguf.tensors:
        raise refusal(gguf, f"{CONFIG_TENSORS[0]} is missing")
    divisors = _factors(gguf, CONFIG_TENSORS[0])
    rotated = int((divisors == 1.0).sum())
    if not (np.all(divisors[:rotated] == 1.0) and np.all(divisors[rotated:] > UNROTATED)):
        raise refusal(gguf, "its RoPE frequencies are neither whole nor none")
    share = rotated / divisors.size
    return {"rope_theta": theta, "rope_type": "proportional", "partial_rotary_factor": share}
