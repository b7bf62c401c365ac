"""The parity check of an attention backend: random numbers on its device, against a reference.

The reference is computed on the CPU in float32 from the same rounded inputs. It shares nothing
with the backend under test.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.attention.backend import AttentionBackend, AttentionSpec
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from stonechat_models.backends.transformers.kv_cache import LayerKV
from stonechat_models.errors import EngineError

CASES = {
    "decode": ((1, 1), (1, 40), (1, 300), (1, 129)),
    "prefill": ((70, 70), (1, 90), (37, 301), (1, 1), (16, 160)),
}
"""(query tokens, context length) per sequence. The prefill case has more queries than a tile,
cached prefixes of several lengths, and single tokens among them."""
MAX_WINDOW = 100
"""Longer windows are shortened to this, so that the contexts of the cases exceed them."""
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Largest allowed error of a token's output, relative to its largest number: some roundings."""


class ParityError(EngineError):
    """A backend's result is wrong. The message has the figures."""


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
        window, capped = spec.sliding_window is not None, spec.softcap is not None
        return (*shape, spec.scaling, window, capped, spec.sinks is not None)


def common_kinds() -> list[LayerKind]:
    """Kinds for a check without a model: grouped heads, with and without a window."""
    plain = AttentionSpec(scaling=64**-0.5)
    kind = LayerKind(8, 2, 64, 64, plain)
    return [kind, replace(kind, spec=replace(plain, sliding_window=MAX_WINDOW))]


@dataclass(frozen=True, slots=True)
class ParityCheck:
    """The device, the dtypes and the kinds of layers that a backend must support."""

    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype
    block_size: int
    kinds: Sequence[LayerKind]

    @torch.inference_mode()
    def run(self, backend: AttentionBackend) -> None:
        """Raises `ParityError` with figures if a result is wrong, or the backend's own error."""
        generator = torch.Generator().manual_seed(0)
        for kind in self.kinds:
            for name, lengths in CASES.items():
                batch = random_batch(lengths, self.block_size, generator)
                self._check(backend, kind, name, batch, generator)

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
        error = relative_error(expected, actual.float().cpu())
        limit = TOLERANCE[self.dtype]
        if not error <= limit:
            raise ParityError(
                f"{case} of {kind.num_heads} query and {kind.num_kv_heads} KV heads of size "
                f"{kind.key_size}{_features(spec)} in {str(self.dtype).removeprefix('torch.')} "
                f"is off by {error:.2g} of a token's largest number; rounding explains "
                f"{limit:.2g} at most"
            )


def relative_error(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """The largest error of any token [T, H, D], relative to its largest number; inf for NaN."""
    if expected.shape != actual.shape:
        return float("inf")
    difference = (expected - actual).abs().amax((1, 2)) / expected.abs().amax((1, 2))
    return float(torch.nan_to_num(difference, nan=float("inf")).max())


def _shortened(kind: LayerKind, sinks: torch.Tensor) -> AttentionSpec:
    window = kind.spec.sliding_window
    return replace(
        kind.spec,
        sliding_window=None if window is None else min(window, MAX_WINDOW),
        sinks=None if kind.spec.sinks is None else sinks,
    )


def _features(spec: AttentionSpec) -> str:
    names = {"window": spec.sliding_window, "soft cap": spec.softcap, "sinks": spec.sinks}
    features = [name for name, value in names.items() if value is not None]
    return f" with {', '.join(features)}" if features else ""


def random_batch(
    lengths: Sequence[tuple[int, int]], block_size: int, generator: torch.Generator
) -> ForwardBatch:
    """A batch on the CPU with scattered blocks. `lengths`: (query tokens, context length) each."""
    query_start = [0, *accumulate(queries for queries, _ in lengths)]
    context_lens = [context for _, context in lengths]
    widths = [-(-context // block_size) for context in context_lens]
    blocks = torch.randperm(sum(widths), generator=generator, dtype=torch.int32)
    table = torch.zeros(len(lengths), max(widths), dtype=torch.int32)
    slots, positions = [], []
    for i, sequence_blocks in enumerate(torch.split(blocks, widths)):
        table[i, : widths[i]] = sequence_blocks
        positions.append(torch.arange(context_lens[i] - lengths[i][0], context_lens[i]))
        slots.append(
            sequence_blocks[positions[i] // block_size].long() * block_size
            + positions[i] % block_size
        )
    return ForwardBatch(
        token_ids=torch.zeros(query_start[-1], dtype=torch.int64),
        positions=torch.cat(positions),
        slot_mapping=torch.cat(slots),
        query_start=torch.tensor(query_start, dtype=torch.int32),
        context_lens=torch.tensor(context_lens, dtype=torch.int32),
        block_table=table,
        logits_index=torch.tensor(query_start[1:]) - 1,
        query_start_list=query_start,
        context_lens_list=context_lens,
    )
