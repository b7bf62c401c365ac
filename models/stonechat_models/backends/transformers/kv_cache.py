"""The paged KV cache of a PyTorch model: one row per layer and token slot."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from stonechat_models.backends.quantization.device_support import FP8, FP8_MAX
from stonechat_models.errors import ModelLoadError
from stonechat_models.hardware.transfers import to_device
from stonechat_models.model_info import size_text


@dataclass(frozen=True, slots=True)
class LayerKVShape:
    """The shape of one layer's entry per token. Key and value head sizes may differ (MLA)."""

    num_kv_heads: int
    key_size: int
    value_size: int

    @property
    def num_elements(self) -> int:
        return self.num_kv_heads * (self.key_size + self.value_size)


@dataclass(frozen=True, slots=True)
class LayerKV:
    """One layer's keys [num_blocks * block_size, num_kv_heads, key_size], and values likewise."""

    keys: torch.Tensor
    values: torch.Tensor
    block_size: int

    def read(self, slots: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [*slots, Hkv, Dk] and values [*slots, Hkv, Dv] at `slots`, in `dtype`."""
        return _read(self.keys, slots, dtype), _read(self.values, slots, dtype)


class KVCache:
    """`keys[layer]` is [num_blocks * block_size, num_kv_heads, key_size]; `values` likewise."""

    def __init__(
        self,
        shapes: dict[int, LayerKVShape],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        devices: dict[int, torch.device],
    ) -> None:
        self.block_size = block_size
        num_slots = num_blocks * block_size
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        try:
            for layer, shape in shapes.items():
                for tensors, size in (
                    (self.keys, shape.key_size),
                    (self.values, shape.value_size),
                ):
                    tensors[layer] = _zeros(
                        (num_slots, shape.num_kv_heads, size), dtype, devices[layer]
                    )
        except (RuntimeError, MemoryError) as error:
            needed = sum(s.num_elements for s in shapes.values()) * num_slots * dtype.itemsize
            raise ModelLoadError(
                f"no memory for a KV cache of {num_slots} tokens, {size_text(needed)}: {error}"
            ) from error

    def layer(self, layer: int) -> LayerKV:
        return LayerKV(self.keys[layer], self.values[layer], self.block_size)

    def write(
        self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Store key [T, Hkv, Dk] and value [T, Hkv, Dv] at `slots` int64[T]."""
        _store(self.keys[layer], slots, key)
        _store(self.values[layer], slots, value)

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copy blocks, (source, destination). Every source is read before any block is written."""
        for tensors in (self.keys, self.values):
            for tensor in tensors.values():
                blocks = _as_bits(tensor).view(-1, self.block_size, *tensor.shape[1:])
                sources, copies = to_device(list(zip(*pairs, strict=True)), tensor.device)
                blocks.index_copy_(0, copies, blocks[sources])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros. In the main memory, a page takes space only after something is written there.

    PyTorch writes its zeros at once: a cache of 4 GiB would take seconds, and all of its memory.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    bits = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(bits).view(dtype).view(shape)


def _read(cache: torch.Tensor, slots: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return _as_bits(cache)[slots].view(cache.dtype).to(dtype)


def _store(cache: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
    if cache.dtype is FP8:  # a cast may saturate or overflow
        rows = rows.clamp(-FP8_MAX, FP8_MAX)
    _as_bits(cache).index_copy_(0, slots, _as_bits(rows.to(cache.dtype)))


def _as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """float8 as bytes: some operators that move elements do not support float8."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor
