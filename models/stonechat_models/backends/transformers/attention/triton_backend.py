"""The Triton backend: launches the decode and prefill kernels for a step.

Runs on CUDA, and on a CPU in Triton's interpreter (`TRITON_INTERPRET=1`). Tests use the
interpreter if there is no GPU.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.triton_decode import (
    combine_kernel,
    decode_kernel,
)
from stonechat_models.backends.transformers.attention.triton_prefill import prefill_kernel
from stonechat_models.backends.transformers.kv_cache import LayerKV

MAX_SPLITS = 64
WAVES = 2
"""Decode programs per multiprocessor."""


@dataclass(frozen=True, slots=True)
class TileSizes:
    """How many rows and keys a program handles at once, and how Triton compiles it."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


class TritonBackend:
    """Paged attention in Triton: any head size up to 256, any grouping of heads."""

    name = "triton"

    def __init__(self, num_programs: int = 264) -> None:
        """`num_programs`: decode programs that fill the device at once."""
        self._num_programs = num_programs

    @classmethod
    def for_device(cls, device: torch.device) -> "TritonBackend":
        """The backend for a CUDA device, sized by its multiprocessors."""
        properties = torch.cuda.get_device_properties(device)
        return cls(WAVES * properties.multi_processor_count)

    def attend(
        self, query: torch.Tensor, kv: LayerKV, batch: ForwardBatch, spec: AttentionSpec
    ) -> torch.Tensor:
        if query.stride(2) != 1:
            query = query.contiguous()
        output = query.new_empty(query.shape[0], query.shape[1], kv.values.shape[2])
        num_decodes = _num_decodes(batch)
        shape = _shape(query, kv, spec)
        with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
            if num_decodes:
                self._decode(query, kv, batch, spec, shape, output)
            if num_decodes < batch.num_seqs:
                _prefill(query, kv, batch, spec, shape, num_decodes > 0, output)
        return output

    def num_splits(self, num_seqs: int, num_kv_heads: int, max_context_len: int, keys: int) -> int:
        """A power of two: enough splits to fill the device, each with at least one tile of keys."""
        splits_to_fill = self._num_programs // (num_seqs * num_kv_heads)
        num_tiles = -(-max_context_len // keys)
        splits = max(1, min(splits_to_fill, num_tiles, MAX_SPLITS))
        return 1 << (splits.bit_length() - 1)

    def _decode(
        self,
        query: torch.Tensor,
        kv: LayerKV,
        batch: ForwardBatch,
        spec: AttentionSpec,
        shape: dict[str, Any],
        output: torch.Tensor,
    ) -> None:
        num_seqs, num_heads, num_kv_heads = batch.num_seqs, query.shape[1], kv.keys.shape[1]
        tile = decode_tile(shape["GROUP"], shape["BLOCK_DK"], query.dtype)
        longest = max(batch.context_lens_list)
        for span in (spec.sliding_window, spec.chunk_size):
            if span is not None:  # one that starts inside a tile needs one more
                longest = min(longest, span + tile.keys)
        splits = self.num_splits(num_seqs, num_kv_heads, longest, tile.keys)
        partial = query.new_empty((num_seqs, num_heads, splits, shape["DV"]), dtype=torch.float32)
        peaks = partial.new_empty(partial.shape[:3])
        totals = torch.empty_like(peaks)
        decode_kernel[(num_seqs, num_kv_heads, splits)](
            query,
            kv.keys,
            kv.values,
            batch.query_start,
            batch.context_lens,
            batch.block_table,
            partial,
            peaks,
            totals,
            *_strides(query, kv, batch),
            *_scalars(spec),
            NUM_SPLITS=splits,
            BLOCK_M=tile.rows,
            BLOCK_K=tile.keys,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **shape,
        )
        combine_kernel[(num_seqs, num_heads)](
            partial,
            peaks,
            totals,
            peaks if spec.sinks is None else spec.sinks,
            batch.query_start,
            output,
            NUM_SPLITS=splits,
            DV=shape["DV"],
            BLOCK_DV=shape["BLOCK_DV"],
            HAS_SINKS=spec.sinks is not None,
        )


def _prefill(
    query: torch.Tensor,
    kv: LayerKV,
    batch: ForwardBatch,
    spec: AttentionSpec,
    shape: dict[str, Any],
    skip_decodes: bool,
    output: torch.Tensor,
) -> None:
    tile = prefill_tile(shape["GROUP"], shape["BLOCK_DK"], query.dtype)
    tokens_of_tile = tile.rows // shape["GROUP"]
    num_tiles = batch.num_tokens // tokens_of_tile + batch.num_seqs
    prefill_kernel[(num_tiles, kv.keys.shape[1])](
        query,
        kv.keys,
        kv.values,
        batch.query_start,
        batch.context_lens,
        batch.block_table,
        output if spec.sinks is None else spec.sinks,
        output,
        batch.num_seqs,
        *_strides(query, kv, batch),
        *_scalars(spec),
        BLOCK_Q=tokens_of_tile,
        BLOCK_M=tile.rows,
        BLOCK_K=tile.keys,
        HAS_SINKS=spec.sinks is not None,
        MIN_QUERIES=2 if skip_decodes else 1,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **shape,
    )


def decode_tile(group: int, head_size: int, dtype: torch.dtype) -> TileSizes:
    """Sizes for a program of the decode kernel. `head_size` is the padded size."""
    keys = 32 if head_size > 128 or dtype == torch.float32 else 64
    return TileSizes(max(16, triton.next_power_of_2(group)), keys, num_warps=4, num_stages=3)


def prefill_tile(group: int, head_size: int, dtype: torch.dtype) -> TileSizes:
    """Sizes for a program of the prefill kernel. A tile holds at least one token's heads."""
    is_large = head_size > 128 or dtype == torch.float32
    rows = max(64 if is_large else 128, triton.next_power_of_2(group))
    return TileSizes(rows, 32 if is_large else 64, num_warps=4 if is_large else 8, num_stages=2)


def _num_decodes(batch: ForwardBatch) -> int:
    starts = batch.query_start_list
    if batch.num_tokens == batch.num_seqs:
        return batch.num_seqs
    return sum(starts[i + 1] - starts[i] == 1 for i in range(batch.num_seqs))


def _shape(query: torch.Tensor, kv: LayerKV, spec: AttentionSpec) -> dict[str, Any]:
    """Compile-time arguments of both kernels."""
    keys, values = kv.keys, kv.values
    return {
        "GROUP": query.shape[1] // keys.shape[1],
        "BLOCK_SIZE": kv.block_size,
        "DK": keys.shape[2],
        "DV": values.shape[2],
        "BLOCK_DK": max(16, triton.next_power_of_2(keys.shape[2])),
        "BLOCK_DV": max(16, triton.next_power_of_2(values.shape[2])),
        "HAS_SOFTCAP": spec.softcap is not None,
        "HAS_WINDOW": spec.sliding_window is not None,
        "HAS_CHUNKS": spec.chunk_size is not None,
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
        "UPCAST": query.dtype == torch.bfloat16 and query.device.type == "cpu",
    }


def _strides(query: torch.Tensor, kv: LayerKV, batch: ForwardBatch) -> tuple[int, ...]:
    strides = [x.stride(i) for x in (query, kv.keys, kv.values) for i in range(2)]
    return (*strides, batch.block_table.stride(0))


def _scalars(spec: AttentionSpec) -> tuple[float, float, int, int]:
    """Scaling, soft cap, window and chunk. A missing one is 0, and the kernels do not read it."""
    return spec.scaling, spec.softcap or 0.0, spec.sliding_window or 0, spec.chunk_size or 0
