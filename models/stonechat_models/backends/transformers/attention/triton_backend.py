"""The Triton backend: launches the decode and prefill kernels for a step.

Runs on CUDA, and on a CPU in Triton's interpreter (`TRITON_INTERPRET=1`). Tests use the
interpreter if there is no GPU.
"""

import functools
from typing import Any

import torch
import triton

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.tile_sizes import Tiles, TileShape, TileSizes
from stonechat_models.backends.transformers.attention.triton_decode import decode_kernel
from stonechat_models.backends.transformers.attention.triton_prefill import prefill_kernel
from stonechat_models.backends.transformers.kv_cache import LayerKV
from stonechat_models.hardware.dependent_launch import launch_settings

MAX_SPLITS = 64
NUM_COUNTERS = 1 << 16
"""More than any card has decode programs at once."""
NUMBERS_PER_WARP = 2048
"""How many numbers a warp holds while it sums up parts: 64 a thread."""
FEW_SEQS = 8
"""Up to so many sequences, the first of two chosen tiles is used."""

DecodeShape = tuple[int, int, int, int]
"""Query heads, KV heads, key size and value size."""


class TritonBackend:
    """Paged attention in Triton: any head size up to 256, any grouping of heads."""

    name = "triton"

    def __init__(self, num_multiprocessors: int = 132, tiles: Tiles | None = None) -> None:
        self._num_multiprocessors = num_multiprocessors
        self._tiles = tiles or Tiles()
        self._num_done: dict[torch.device, torch.Tensor] = {}
        self.decode_tiles: dict[DecodeShape, tuple[TileSizes, TileSizes]] = {}
        """Chosen tiles for few sequences, and for more. Other shapes have tiles by the table."""

    @classmethod
    def for_device(cls, device: torch.device) -> "TritonBackend":
        """The backend for a CUDA device, with its number of multiprocessors and tile sizes."""
        properties = torch.cuda.get_device_properties(device)
        return cls(properties.multi_processor_count, Tiles((properties.major, properties.minor)))

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
                tile = self.decode_tile(query, kv, batch.num_seqs)
                self._decode(query, kv, batch, spec, shape, tile, output)
            if num_decodes < batch.num_seqs:
                tile = self._tiles.prefill(_tile_shape(query, kv))
                _prefill(query, kv, batch, spec, shape, tile, num_decodes > 0, output)
        return output

    def decode_tile(self, query: torch.Tensor, kv: LayerKV, num_seqs: int) -> TileSizes:
        """The tile that decodes in a step of `num_seqs` sequences."""
        shape = (query.shape[1], *kv.keys.shape[1:], kv.values.shape[2])
        chosen = self.decode_tiles.get(shape)
        if chosen is None:
            return self._tiles.decode(_tile_shape(query, kv))
        return chosen[num_seqs > FEW_SEQS]

    def compile_decode(
        self,
        query: torch.Tensor,
        kv: LayerKV,
        batch: ForwardBatch,
        spec: AttentionSpec,
        tile: TileSizes,
    ) -> None:
        """Compile what `attend` would launch with this tile, and launch nothing."""
        output = query.new_empty(query.shape[0], query.shape[1], kv.values.shape[2])
        shape = _shape(query, kv, spec)
        self._decode(query, kv, batch, spec, shape, tile, output, compiles_only=True)

    def num_splits(self, num_pairs: int, max_context_len: int, tile: TileSizes) -> int:
        """A power of two: enough splits to fill the device, each with at least one tile of keys.

        `num_pairs`: sequences times KV heads.
        """
        splits_to_fill = self._num_multiprocessors * tile.waves // num_pairs
        num_tiles = -(-max_context_len // tile.keys)
        splits = max(1, min(splits_to_fill, num_tiles, MAX_SPLITS))
        return 1 << (splits.bit_length() - 1)

    def _decode(
        self,
        query: torch.Tensor,
        kv: LayerKV,
        batch: ForwardBatch,
        spec: AttentionSpec,
        shape: dict[str, Any],
        tile: TileSizes,
        output: torch.Tensor,
        compiles_only: bool = False,
    ) -> None:
        num_seqs, num_kv_heads = batch.num_seqs, kv.keys.shape[1]
        longest = max(batch.context_lens_list)
        for span in (spec.sliding_window, spec.chunk_size):
            if span is not None:  # one that starts inside a tile needs one more
                longest = min(longest, span + tile.keys)
        splits = self.num_splits(num_seqs * num_kv_heads, longest, tile)
        group = triton.next_power_of_2(shape["GROUP"])
        num_parts = num_seqs * num_kv_heads * splits if splits > 1 else 0
        partial = query.new_empty((num_parts, shape["GROUP"], shape["DV"]), dtype=torch.float32)
        peaks = partial.new_empty(partial.shape[:2])
        totals = torch.empty_like(peaks)
        grid = (num_seqs, num_kv_heads, splits)
        launch = decode_kernel[grid]
        if compiles_only:
            launch = functools.partial(decode_kernel.warmup, grid=grid)
        launch(
            query,
            kv.keys,
            kv.values,
            batch.query_start,
            batch.context_lens,
            batch.block_table,
            output if spec.sinks is None else spec.sinks,
            output,
            partial,
            peaks,
            totals,
            self._counters(query.device),
            *_strides(query, kv, batch),
            *_scalars(spec),
            BLOCK_M=tile.rows,
            BLOCK_K=tile.keys,
            BLOCK_GROUP=group,
            IS_SPLIT=splits > 1,
            PARTS=parts_at_once(group * shape["BLOCK_DV"], tile.num_warps),
            HAS_SINKS=spec.sinks is not None,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **shape,
            **launch_settings(query.device),
        )

    def _counters(self, device: torch.device) -> torch.Tensor:
        """Zeros, one for each sequence and KV head that can have several splits."""
        if device not in self._num_done:
            self._num_done[device] = torch.zeros(NUM_COUNTERS, dtype=torch.int32, device=device)
        return self._num_done[device]


def parts_at_once(part_size: int, num_warps: int) -> int:
    """How many parts a program of the decode kernel loads at once when it sums them up."""
    return max(1, NUMBERS_PER_WARP * num_warps // part_size)


def _prefill(
    query: torch.Tensor,
    kv: LayerKV,
    batch: ForwardBatch,
    spec: AttentionSpec,
    shape: dict[str, Any],
    tile: TileSizes,
    skip_decodes: bool,
    output: torch.Tensor,
) -> None:
    tokens_of_tile = tile.rows // shape["GROUP"]
    num_tiles = batch.num_tokens // tokens_of_tile + batch.num_seqs
    ends = batch.visible_ends
    prefill_kernel[(num_tiles, kv.keys.shape[1])](
        query,
        kv.keys,
        kv.values,
        batch.query_start,
        batch.context_lens,
        batch.block_table,
        output if spec.sinks is None else spec.sinks,
        output if ends is None else ends,
        output,
        batch.num_seqs,
        *_strides(query, kv, batch),
        *_scalars(spec),
        BLOCK_Q=tokens_of_tile,
        BLOCK_M=tile.rows,
        BLOCK_K=tile.keys,
        HAS_SINKS=spec.sinks is not None,
        HAS_ENDS=ends is not None,
        MIN_QUERIES=2 if skip_decodes else 1,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **shape,
        **launch_settings(query.device),
    )


def _num_decodes(batch: ForwardBatch) -> int:
    starts = batch.query_start_list
    if batch.num_tokens == batch.num_seqs:
        return batch.num_seqs
    return sum(starts[i + 1] - starts[i] == 1 for i in range(batch.num_seqs))


def _tile_shape(query: torch.Tensor, kv: LayerKV) -> TileShape:
    size = max(16, triton.next_power_of_2(kv.keys.shape[2]))
    return TileShape(query.shape[1] // kv.keys.shape[1], size, query.dtype)


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
        "PRECISION": "ieee",
        "UPCAST": query.dtype == torch.bfloat16 and query.device.type == "cpu",
    }


def _strides(query: torch.Tensor, kv: LayerKV, batch: ForwardBatch) -> tuple[int, ...]:
    strides = [x.stride(i) for x in (query, kv.keys, kv.values) for i in range(2)]
    return (*strides, batch.block_table.stride(0))


def _scalars(spec: AttentionSpec) -> tuple[float, float, int, int]:
    """Scaling, soft cap, window and chunk. A missing one is 0, and the kernels do not read it."""
    return spec.scaling, spec.softcap or 0.0, spec.sliding_window or 0, spec.chunk_size or 0
