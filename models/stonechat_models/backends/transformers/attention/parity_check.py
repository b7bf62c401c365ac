"""The parity check of an attention backend: random numbers on its device, against a reference.

The reference is computed on the CPU in float32 from the same rounded inputs. It shares nothing
with the backend under test.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from stonechat_models.backends.base import ForwardBatch, StepMedia
from stonechat_models.backends.transformers.attention.backend import AttentionBackend, AttentionSpec
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from stonechat_models.backends.transformers.kv_cache import LayerKV
from stonechat_models.backends.transformers.verify import (
    TOLERANCE,
    random_batch,
    relative_error,
)
from stonechat_models.errors import EngineError

CASES = {
    "decode": ((1, 1), (1, 40), (1, 300), (1, 129)),
    "prefill": ((70, 70), (1, 90), (37, 301), (1, 1), (16, 160)),
}
"""(query tokens, context length) per sequence. The prefill case has more queries than a tile,
cached prefixes of several lengths, and single tokens among them."""
IMAGES = {2: ((250, 290), (295, 301)), 0: ((3, 60),)}
"""Runs of positions, start and end, in sequences of the prefill case whose tokens see each other.
One starts in the cached prefix, one reaches over a tile of queries, and one ends the context."""
MAX_WINDOW = 100
"""Longer windows and chunks are shortened to this. The contexts of the cases exceed it."""


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What distinguishes attention layers. Only the presence of `spec.sinks` counts."""

    num_heads: int
    num_kv_heads: int
    key_size: int
    value_size: int
    spec: AttentionSpec

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for layers that a backend computes in the same way."""
        spec = self.spec
        shape = (self.num_heads, self.num_kv_heads, self.key_size, self.value_size)
        optional = (spec.sliding_window, spec.softcap, spec.sinks, spec.chunk_size)
        return (*shape, spec.scaling, *(value is not None for value in optional))


@dataclass(frozen=True, slots=True)
class ParityCheck:
    """The device, the dtypes and the kinds of layers that a backend must support."""

    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype
    block_size: int
    kinds: Sequence[LayerKind]
    has_visible_ends: bool = False
    """Whether tokens of images see those after them, in any layer."""

    @torch.inference_mode()
    def run(self, backend: AttentionBackend) -> None:
        """Raises `EngineError` with figures if a result is wrong, or the backend's own error."""
        generator = torch.Generator().manual_seed(0)
        for kind in self.kinds:
            for name, lengths in CASES.items():
                batch = random_batch(lengths, self.block_size, generator)
                self._check(backend, kind, name, batch, generator)
            if self.has_visible_ends:
                batch = with_images(random_batch(CASES["prefill"], self.block_size, generator))
                self._check(backend, kind, "prefill with images", batch, generator)

    def _check(
        self,
        backend: AttentionBackend,
        kind: LayerKind,
        case: str,
        batch: ForwardBatch,
        generator: torch.Generator,
    ) -> None:
        num_slots = (int(batch.block_table.max()) + 1) * self.block_size

        def random(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        query = random(self.dtype, batch.num_tokens, kind.num_heads, kind.key_size)
        keys = random(self.kv_dtype, num_slots, kind.num_kv_heads, kind.key_size)
        values = random(self.kv_dtype, num_slots, kind.num_kv_heads, kind.value_size)
        spec = _shortened(kind, random(self.dtype, kind.num_heads))
        kv = LayerKV(keys.float(), values.float(), self.block_size)
        expected = SdpaBackend().attend(query.float(), kv, batch, spec)
        on_device = replace(spec, sinks=None if spec.sinks is None else spec.sinks.to(self.device))
        kv = LayerKV(keys.to(self.device), values.to(self.device), self.block_size)
        actual = backend.attend(query.to(self.device), kv, batch.to(self.device), on_device)
        largest = expected.abs().amax(dim=(1, 2))
        error = float(relative_error(expected, actual.float().cpu(), largest).max())
        limit = TOLERANCE["attention"][self.dtype]
        if not error <= limit:
            raise EngineError(
                f"{case} of {kind.num_heads} query and {kind.num_kv_heads} KV heads of size "
                f"{kind.key_size}{_features(spec)} in {str(self.dtype).removeprefix('torch.')} "
                f"is off by {error:.2g} of a token's largest number; rounding explains "
                f"{limit:.2g} at most"
            )


def with_images(batch: ForwardBatch) -> ForwardBatch:
    """The prefill case, where the tokens of each run in `IMAGES` see each other."""
    ends = batch.positions + 1
    for i, runs in IMAGES.items():
        rows = slice(batch.query_start_list[i], batch.query_start_list[i + 1])
        for start, end in runs:
            positions = batch.positions[rows]
            ends[rows][(positions >= start) & (positions < end)] = end
    nothing = torch.zeros(0, dtype=torch.int64)
    return replace(batch, media=StepMedia(nothing, nothing, visible_ends=ends.int()))


def _shortened(kind: LayerKind, sinks: torch.Tensor) -> AttentionSpec:
    window, chunk = kind.spec.sliding_window, kind.spec.chunk_size
    return replace(
        kind.spec,
        sliding_window=None if window is None else min(window, MAX_WINDOW),
        chunk_size=None if chunk is None else min(chunk, MAX_WINDOW),
        sinks=None if kind.spec.sinks is None else sinks,
    )


def _features(spec: AttentionSpec) -> str:
    names = {
        "window": spec.sliding_window,
        "chunks": spec.chunk_size,
        "soft cap": spec.softcap,
        "sinks": spec.sinks,
    }
    features = [name for name, value in names.items() if value is not None]
    return f" with {', '.join(features)}" if features else ""
