"""Layouts in which GGUF files store parameters otherwise than transformers."""

from collections.abc import Sequence

import numpy as np

from stonechat_models.checkpoint.gguf.architecture import Join
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.errors import ModelLoadError


def split_rope_pairs(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder the rows of each head from interleaved RoPE pairs to two halves.

    ggml's llama rotates rows 2i and 2i + 1 together; transformers rotates rows i and i + D/2.
    """
    if rows.shape[0] % (2 * num_heads):
        raise ModelLoadError(
            "the rows of the query or key projections do not fit the number of heads; download the "
            "file again"
        )
    half = rows.shape[0] // num_heads // 2
    paired = rows.reshape(num_heads, half, 2, *rows.shape[1:])
    return paired.swapaxes(1, 2).reshape(rows.shape)


def flat(values: np.ndarray, config: HFConfig) -> np.ndarray:
    """Make a vector."""
    return values.reshape(-1)


def row(values: np.ndarray, config: HFConfig) -> np.ndarray:
    """Make a matrix of one row."""
    return values.reshape(1, -1)


def log_of_negated_matrix(values: np.ndarray, config: HFConfig) -> np.ndarray:
    """The file stores -exp(x)."""
    if not np.all(values < 0):
        raise ModelLoadError("a decay of a state is not below 0; download the file again")
    result: np.ndarray = np.log(-values)
    return result


def log_of_negated(values: np.ndarray, config: HFConfig) -> np.ndarray:
    """The file stores -exp(x) of the vector x."""
    return flat(log_of_negated_matrix(values, config), config)


def decay_per_head(values: np.ndarray, config: HFConfig) -> np.ndarray:
    """The file stores -exp(x) of [1, 1, H, 1]."""
    return log_of_negated(values, config).reshape(1, 1, -1, 1)


def conv_kernel(values: np.ndarray, config: HFConfig) -> np.ndarray:
    """[C, K], with or without dimensions of size 1, becomes [C, 1, K]."""
    return values.reshape(-1, 1, values.shape[-1])


def transposed(values: np.ndarray, config: HFConfig) -> np.ndarray:
    """Swap the last two dimensions."""
    return values.swapaxes(-1, -2)


def by_key_head(values: np.ndarray, config: HFConfig) -> np.ndarray:
    """Put the rows of queries, keys and values of one key head behind each other."""
    heads, key_heads = config.num_heads, config.num_kv_heads
    ends = np.array([heads, heads + key_heads]) * (len(values) // (heads + 2 * key_heads))
    parts = [p.reshape(key_heads, -1, *values.shape[1:]) for p in np.split(values, ends)]
    return np.concatenate(parts, axis=1).reshape(values.shape)


def rows_joined(axis: int) -> Join:
    """Return a join along an axis."""
    return lambda parts, config: np.concatenate(parts, axis=axis)


def interleaved(parts: Sequence[np.ndarray], config: HFConfig) -> np.ndarray:
    """Alternate the elements of the last dimension."""
    return np.stack(parts, axis=-1).reshape(*parts[0].shape[:-1], -1)


def interleaved_columns(parts: Sequence[np.ndarray], config: HFConfig) -> np.ndarray:
    """Alternate the rows of each matrix, and transpose it."""
    return interleaved([transposed(part, config) for part in parts], config)


def joined_columns(parts: Sequence[np.ndarray], config: HFConfig) -> np.ndarray:
    """Put the rows of each matrix behind each other, and transpose it."""
    return transposed(np.concatenate(parts, axis=-2), config)


def latent_heads(parts: Sequence[np.ndarray], config: HFConfig) -> np.ndarray:
    """Join [H, R, K] and [H, V, R] to the rows of each head's keys and values: [H * (K + V), R]."""
    keys, values = parts
    heads = np.concatenate([keys.swapaxes(1, 2), values], axis=1)
    return heads.reshape(-1, heads.shape[-1])


def _value_heads(config: HFConfig) -> tuple[int, int, int, int]:
    """Return the key heads, the value heads of each, and the sizes of both."""
    read = config.keys.size
    keys, values = read("linear_num_key_heads"), read("linear_num_value_heads")
    if not keys or values % keys:
        raise config.keys.error("linear_num_value_heads", f"is {values} for {keys} key heads")
    return keys, values // keys, read("linear_key_head_dim"), read("linear_value_head_dim")


def grouped_values(values: np.ndarray, config: HFConfig) -> np.ndarray:
    """Reorder the value heads in the rows: all of one key head come behind each other.

    The file has the first value head of each key head, then the second of each, and so on.
    """
    keys, per_key, _, _ = _value_heads(config)
    heads = values.reshape(per_key, keys, -1, *values.shape[1:])
    return heads.swapaxes(0, 1).reshape(values.shape)


def grouped_inputs(values: np.ndarray, config: HFConfig) -> np.ndarray:
    """Reorder the value heads in the columns."""
    return grouped_values(values.T, config).T


def grouped_decays(values: np.ndarray, config: HFConfig) -> np.ndarray:
    """Reorder the value heads of stored -exp(x)."""
    return grouped_values(log_of_negated(values, config), config)


def grouped_tail(values: np.ndarray, config: HFConfig) -> np.ndarray:
    """Reorder the value heads behind the rows of queries and keys."""
    keys, _, key_size, _ = _value_heads(config)
    head = values[: 2 * keys * key_size]
    return np.concatenate([head, grouped_values(values[len(head) :], config)])


def grouped_kernel(values: np.ndarray, config: HFConfig) -> np.ndarray:
    """Reorder the value channels of a convolution, [C, K], and make it [C, 1, K]."""
    return conv_kernel(grouped_tail(values, config), config)


def queries_to_gates(parts: Sequence[np.ndarray], config: HFConfig) -> np.ndarray:
    """Join rows of queries, keys and values, and rows of gates, to the rows of each key head."""
    merged, gates = parts
    keys, per_key, key_size, value_size = _value_heads(config)
    ends = [keys * key_size, 2 * keys * key_size]
    columns = [*np.split(merged, ends), gates]
    sizes = [key_size, key_size, per_key * value_size, per_key * value_size]
    heads = [part.reshape(keys, size, -1) for part, size in zip(columns, sizes, strict=True)]
    joined = np.concatenate(heads, axis=1)
    return joined.reshape(-1, joined.shape[-1])
