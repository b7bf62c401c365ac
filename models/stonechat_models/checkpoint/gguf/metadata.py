"""Reads single values of a GGUF file's metadata, and checks them.

Every function raises `UnsupportedModelError` with the key for a value that is missing or cannot be
right.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from stonechat_models.checkpoint.gguf.reader import GgufFile, GgufValue
from stonechat_models.checkpoint.hf_config import MAX_FLOAT32, MAX_LAYERS, MAX_SIZE
from stonechat_models.errors import UnsupportedModelError

Config = dict[str, Any]
Read = Callable[[GgufFile], object]
"""Reads one value for config.json."""

POOLINGS = {1: "mean", 2: "cls", 3: "lasttoken", 4: "rank"}
"""What llama.cpp's numbers for poolings stand for, as sentence-transformers names them. Models with
the last one score pairs of texts."""
NO_POOLING = (0, 0xFFFFFFFF)
HEAD_PREFIX = "cls."
"""How the names of tensors begin that make a score."""


def refusal(gguf: GgufFile, reason: str) -> UnsupportedModelError:
    """Return the error for a file that a config cannot describe exactly."""
    return UnsupportedModelError(
        f"{gguf.path.name} ({gguf.architecture}) cannot be converted exactly; try the model's "
        f"safetensors files: {reason}"
    )


def integer(
    gguf: GgufFile, key: str, default: int | None = None, limit: int = MAX_SIZE, least: int = 1
) -> int:
    """Return an integer from `least` to `limit`. A list of equal integers counts as one."""
    value = gguf.value(key)
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        value = value[0]
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        bound = f"above {least - 1}" if least else "of at least 0"
        problem = "missing" if value is None else f"not one integer {bound}"
        raise refusal(gguf, f"{key} is {problem}")
    if value > limit:
        raise refusal(gguf, f"{key} is {value}, which is too large")
    return value


def positive(gguf: GgufFile, key: str, default: float | None = None) -> float:
    """Return a number above 0."""
    value = number(gguf, key, default)
    if value <= 0:
        raise refusal(gguf, f"{key} is {value}, which is not a number above 0")
    return value


def number(gguf: GgufFile, key: str, default: float | None = None) -> float:
    """Return a finite number."""
    value = gguf.value(key)
    if value is None and default is not None:
        return default
    return _finite(gguf, key, value)


def numbers(gguf: GgufFile, key: str, count: int) -> list[float]:
    """Return `count` finite numbers, all equal or a list, of a whole key."""
    values = gguf.metadata.get(key)
    if not isinstance(values, list):
        values = [] if values is None else [values] * count
    if len(values) != count:
        raise refusal(gguf, f"{key} does not have {count} numbers")
    return [_finite(gguf, key, value) for value in values]


def _finite(gguf: GgufFile, key: str, value: GgufValue | None) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refusal(gguf, f"{key} is missing or not a number")
    if not abs(value) <= MAX_FLOAT32:
        raise refusal(gguf, f"{key} is {value}, which is not a finite number")
    # The file stores a float32. Its shortest decimal is what the model's author wrote.
    return float(str(np.float32(value)))


def flag(gguf: GgufFile, key: str, default: bool) -> bool:
    """Return a boolean, which is `default` if the key is missing."""
    value = gguf.value(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise refusal(gguf, f"{key} is not a boolean")
    return value


def num_blocks(gguf: GgufFile) -> int:
    """Return the number of layers, without those that predict further tokens (MTP)."""
    blocks = integer(gguf, "block_count", limit=MAX_LAYERS)
    extra = integer(gguf, "nextn_predict_layers", 0, least=0)
    if extra >= blocks:
        raise refusal(gguf, f"nextn_predict_layers is {extra} of {blocks} layers")
    return blocks - extra


def per_layer(gguf: GgufFile, key: str) -> list[int]:
    """Return one integer of at least 0 for each layer."""
    count, value = num_blocks(gguf), gguf.value(key)
    values = value if isinstance(value, list) else [value] * count
    counts = [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]
    if len(counts) != len(values) or len(counts) < count:
        raise refusal(gguf, f"{key} is not one integer of at least 0 for each layer")
    return counts[:count]


def window_types(gguf: GgufFile, period: int, is_first_full: bool = False) -> list[str]:
    """Return the attention of each layer.

    The file says which layers have a sliding window by one flag for each layer, or by a period
    whose last layer, or first, has none. A file without either has the architecture's own period.
    """
    count, key = num_blocks(gguf), "attention.sliding_window_pattern"
    pattern = gguf.value(key)
    if isinstance(pattern, list):
        if len(pattern) < count:
            raise refusal(gguf, "it does not have one sliding-window flag per layer")
        local = [bool(item) for item in pattern[:count]]
    else:
        period = integer(gguf, key, period)
        local = [bool((i if is_first_full else i + 1) % period) for i in range(count)]
    return ["sliding_attention" if is_local else "full_attention" for is_local in local]


def attention_layers(gguf: GgufFile, other: str) -> list[str]:
    """Return the type of each layer: without key heads it is `other`, and has no attention."""
    heads = per_layer(gguf, "attention.head_count_kv")
    return ["full_attention" if count else other for count in heads]


def expert_layers(gguf: GgufFile) -> list[str]:
    """Return the feed-forward block of each layer, as the tensors say."""
    names = (f"blk.{i}.ffn_gate_inp.weight" for i in range(num_blocks(gguf)))
    return ["sparse" if name in gguf.tensors else "dense" for name in names]


def has(gguf: GgufFile, name: str) -> bool:
    """True if some layer has the tensor `blk.<layer>.<name>`."""
    return any(f"blk.{i}.{name}" in gguf.tensors for i in range(num_blocks(gguf)))


def size_at(key: str, default: int | None = None, least: int = 1) -> Read:
    """Return a reader of an integer."""
    return lambda gguf: integer(gguf, key, default, least=least)


def positive_at(key: str, default: float | None = None) -> Read:
    """Return a reader of a number above 0."""
    return lambda gguf: positive(gguf, key, default)


def flag_at(key: str, default: bool) -> Read:
    """Return a reader of a boolean."""
    return lambda gguf: flag(gguf, key, default)


def has_tensor(name: str) -> Read:
    """Return a reader that is True if some layer has a tensor of this name."""
    return lambda gguf: has(gguf, name)


def optional_at(key: str) -> Read:
    """Return a reader of a number above 0, or of null if the key is missing."""
    return lambda gguf: None if gguf.value(key) is None else positive(gguf, key)


def pooling(gguf: GgufFile) -> str:
    """Return how hidden states become an embedding, or `rank` if they become a score.

    It is empty if the file does not say. Older files of rerankers only have the head for scores.
    """
    value = integer(gguf, "pooling_type", 0, limit=NO_POOLING[1], least=0)
    if value in NO_POOLING:
        return POOLINGS[4] if f"{HEAD_PREFIX}output.weight" in gguf.tensors else ""
    if value not in POOLINGS:
        raise refusal(gguf, f"its pooling_type {value} is not served")
    return POOLINGS[value]


def ranks(gguf: GgufFile) -> bool:
    """Whether the model is for scores of pairs."""
    return pooling(gguf) == "rank"
