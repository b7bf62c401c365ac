"""How much memory the KV cache and recurrent states get, and how many sequences fit in it."""

from typing import TYPE_CHECKING

from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.hardware.device import HostDevice
from stonechat_models.model_info import size_text

if TYPE_CHECKING:
    import torch

DEFAULT_KV_FRACTION = {"cuda": 0.9, "mps": 0.5, "cpu": 0.25}
"""Share of the memory free after loading. On a CPU the cache uses memory only as it fills."""
MAX_DEFAULT_CPU_KV_BYTES = 4 << 30
DEFAULT_NUM_SEQS = {"cuda": 256, "mps": 64, "cpu": 128}
MIN_SNAPSHOTS = 8
"""At least so many recurrent states of prompts are kept for later requests, if there is room."""


def size_states(
    config: EngineConfig,
    device: "torch.device | HostDevice",
    *,
    free: int,
    state_bytes: int,
    keeps_snapshots: bool = True,
) -> tuple[int, int]:
    """Return how many recurrent states are kept, and how many sequences may run.

    `state_bytes`: of one sequence, whatever its length. Each running sequence has a state, and
    snapshots of prompts have the rest. They take up to half of the memory for the KV cache. Raises
    `ModelLoadError` if there is no room for two states.
    """
    max_num_seqs = config.max_num_seqs or DEFAULT_NUM_SEQS[device.type]
    if not state_bytes:
        return max_num_seqs, max_num_seqs
    num_slots = _kv_budget(config, device, max(0, free)) // 2 // state_bytes
    if num_slots < 2:
        raise ModelLoadError(
            f"a recurrent state takes {size_text(state_bytes)} per sequence, and there is no "
            f"room for two: {size_text(max(0, free))} are free on {device}"
        )
    if not keeps_snapshots:
        max_num_seqs = min(max_num_seqs, num_slots)
        return max_num_seqs, max_num_seqs
    max_num_seqs = min(max_num_seqs, max(1, num_slots * 2 // 3))
    return min(num_slots, max_num_seqs + max(MIN_SNAPSHOTS, max_num_seqs // 2)), max_num_seqs


def _kv_budget(config: EngineConfig, device: "torch.device | HostDevice", free: int) -> int:
    """Bytes for the KV cache and for recurrent states, of `free` bytes."""
    if config.kv_cache_bytes is not None:
        return config.kv_cache_bytes
    budget = int(free * (config.kv_cache_fraction or DEFAULT_KV_FRACTION[device.type]))
    if config.kv_cache_fraction is None and device.type == "cpu":
        budget = min(budget, MAX_DEFAULT_CPU_KV_BYTES)
    return budget


def size_kv_cache(
    config: EngineConfig,
    device: "torch.device | HostDevice",
    *,
    free: int,
    bytes_per_token: int,
    max_model_len: int,
    state_bytes: int = 0,
) -> tuple[int, int]:
    """Return the blocks of the KV cache and the context length that fits in it.

    `free`: bytes that weights and steps leave. `state_bytes`: those of all recurrent states, which
    share the memory for the KV cache. The cache has no more blocks than all sequences can
    fill. Raises `ModelLoadError` with the numbers if the cache does not fit, holds no block, or is
    too small for the configured context length.
    """
    free = max(0, free)
    budget = _kv_budget(config, device, free)
    if budget > free:
        raise ModelLoadError(
            f"the KV cache needs {size_text(budget)}, but only {size_text(free)} are free on "
            f"{device}: lower --kv-cache-size"
        )
    budget -= state_bytes
    max_num_seqs = config.max_num_seqs or DEFAULT_NUM_SEQS[device.type]
    most = max_model_len * max_num_seqs
    num_blocks = min(budget // bytes_per_token if bytes_per_token else most, most)
    num_blocks //= config.block_size
    if num_blocks < 1:
        raise ModelLoadError(
            f"{size_text(budget)} cannot hold a KV cache block of {config.block_size} tokens "
            f"at {bytes_per_token} bytes per token; {size_text(free)} are free on {device}: give "
            "the cache more (--kv-cache-size), quantise the weights (--quantize), or name a "
            "smaller model"
        )
    capacity = num_blocks * config.block_size
    if capacity < max_model_len and config.max_model_len is not None:
        raise ModelLoadError(
            f"the KV cache holds only {capacity} tokens and the context length is {max_model_len}: "
            "give the cache more memory, or lower the context length (--max-model-len)"
        )
    return num_blocks, min(capacity, max_model_len)
