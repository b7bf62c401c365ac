"""The memory that a model keeps between steps: the KV cache, and recurrent states."""

import numpy as np

from stonechat_models.backends.native.bindings import KV_TILE, Library, Mixer
from stonechat_models.backends.native.packing import Arena
from stonechat_models.backends.native.spec import ModelSpec
from stonechat_models.checkpoint.hf_config import MAX_SIZE
from stonechat_models.errors import ModelLoadError

KV_BYTES = 2
"""Bytes per cached element: keys and values are kept in half precision (float16)."""
STATE_BYTES = 4
"""Bytes per element of a recurrent state, which is kept in float32."""


class KvCache:
    """Keys and values of the layers with attention, in blocks of `block_size` tokens.

    The system provides its pages only as they fill. Raises `ModelLoadError` if `block_size` is not
    a multiple of 16, the slots are more than the compiled code can number, or memory runs out.
    """

    def __init__(
        self, library: Library, model: int, spec: ModelSpec, num_blocks: int, block_size: int
    ) -> None:
        if block_size % KV_TILE:
            raise ModelLoadError(f"the block size {block_size} is not a multiple of {KV_TILE}")
        if num_blocks * block_size > MAX_SIZE:
            raise ModelLoadError(f"a KV cache of {num_blocks * block_size} tokens is too large")
        layers = [i for i in range(spec.num_layers) if spec.mixer(i) is Mixer.ATTENTION]
        shape = (len(layers), 2, num_blocks, block_size * spec.kv_size)
        count = int(np.prod(shape))
        self._arena = Arena(count * KV_BYTES)
        self._layers = [*self._arena.array.view(np.int16)[:count].reshape(shape)]
        addresses = dict.fromkeys(range(spec.num_layers), (0, 0))
        for i, (keys, values) in zip(layers, self._layers, strict=True):
            addresses[i] = keys.ctypes.data, values.ctypes.data
        for i, address in addresses.items():
            library.set_cache(
                *(model, i, *address),
                *(spec.num_kv_heads, spec.head_dim, block_size // KV_TILE, num_blocks),
            )

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy blocks, (source, destination), in all layers."""
        for source, target in pairs:
            for layer in self._layers:
                layer[:, target] = layer[:, source]


class StatePool:
    """The recurrent states of all slots. Raises `ModelLoadError` if memory runs out."""

    def __init__(self, library: Library, model: int, spec: ModelSpec, num_slots: int) -> None:
        self._arena = Arena(num_slots * spec.state_elements * STATE_BYTES)
        self.num_bytes = num_slots * spec.state_elements * STATE_BYTES
        floats = self._arena.array[: self.num_bytes].view(np.float32)
        self._slots = floats.reshape(num_slots, spec.state_elements)
        address = self._arena.address
        for i in range(spec.num_layers):
            if spec.recurrence is not None and spec.mixer(i) is not Mixer.ATTENTION:
                library.set_states(model, i, address, spec.state_elements, num_slots)
                address += spec.recurrence.state_elements * STATE_BYTES

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy states, (source, destination), one after the other."""
        for source, target in pairs:
            self._slots[target] = self._slots[source]
