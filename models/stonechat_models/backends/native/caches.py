"""The memory that a model keeps between steps: the KV cache, and recurrent states."""

import numpy as np

from stonechat_models.backends.native.bindings import KV_TILE, KvFormat, Library, Mixer
from stonechat_models.backends.native.packing import Arena
from stonechat_models.backends.native.plan.spec import ModelSpec
from stonechat_models.checkpoint.hf_config import MAX_SIZE
from stonechat_models.errors import ModelLoadError

STATE_BYTES = 4
"""Bytes per element of a recurrent state, which is kept in float32."""


KV_FORMATS = {"auto": KvFormat.BFLOAT16, "bfloat16": KvFormat.BFLOAT16, "int8": KvFormat.INT8}
"""The format of each `--kv-cache-dtype` that the compiled kernels have."""
SCALE_BYTES = 2
"""Bytes of the scale of a token's keys, or values, of one head."""


def kv_bytes_per_token(spec: ModelSpec, format: KvFormat) -> int:
    """Bytes of a token in the KV cache, over all layers."""
    if format is KvFormat.BFLOAT16:
        return spec.kv_elements_per_token * 2
    num_scales = spec.kv_elements_per_token // spec.head_dim
    return spec.kv_elements_per_token + num_scales * SCALE_BYTES


class KvCache:
    """Keys and values of the layers with attention, in blocks of `block_size` tokens.

    The system provides its memory only as it fills, in pages of 2 MB where it has them. Raises
    `ModelLoadError` if `block_size` is not a multiple of 16, the slots are more than the compiled
    code can number, or memory runs out.
    """

    def __init__(
        self,
        library: Library,
        model: int,
        spec: ModelSpec,
        format: KvFormat,
        num_blocks: int,
        block_size: int,
    ) -> None:
        if block_size % KV_TILE:
            raise ModelLoadError(f"the block size {block_size} is not a multiple of {KV_TILE}")
        if num_blocks * block_size > MAX_SIZE:
            raise ModelLoadError(f"a KV cache of {num_blocks * block_size} tokens is too large")
        layers = [i for i in range(spec.num_layers) if spec.mixer(i) is Mixer.ATTENTION]
        block_bytes = kv_bytes_per_token(spec, format) * block_size  # of all layers
        num_bytes = num_blocks * block_bytes
        self._arena = Arena(num_bytes, huge_pages=True)
        self._blocks = self._arena.array[:num_bytes].reshape(num_blocks, block_bytes)
        addresses = dict.fromkeys(range(spec.num_layers), 0)
        for at, i in enumerate(layers):
            addresses[i] = self._arena.address + at * block_bytes // len(layers)
        for i, address in addresses.items():
            library.set_cache(
                *(model, i, address, block_bytes, format),
                *(spec.num_kv_heads, spec.head_dim, block_size // KV_TILE, num_blocks),
            )

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy blocks, (source, destination), in all layers."""
        for source, target in pairs:
            self._blocks[target] = self._blocks[source]


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
