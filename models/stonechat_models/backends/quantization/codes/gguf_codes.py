"""Reads the blocks of GGUF files as `Codes`, without a change of any number.

The blocks are those of ggml's `ggml-common.h`. In memory they take as much as in the file; a block
of Q4_K or Q5_K takes 4 bytes more, since its scales have 8 bits instead of 6.
"""

from collections.abc import Callable

import torch

from stonechat_models.backends.quantization.codes.codes import (
    PAIRS,
    PLAIN,
    SIGNED,
    CodeFormat,
    Codes,
    float_table,
    pack_codes,
)
from stonechat_models.checkpoint.packed.floats import FP4_DOUBLED

CHUNK_BLOCKS = 1 << 17
"""How many blocks are unpacked at a time: a code takes a byte then."""
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

Planes = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Codes uint8[blocks, weights of a block], scales [blocks, ...] and `extra` [blocks, ...]."""


def _numbers(data: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bytes [blocks, m] as numbers of a larger dtype."""
    return data.contiguous().view(dtype)


def _halves(data: torch.Tensor) -> torch.Tensor:
    """The low and then the high 4 bits of bytes [..., m]: [..., 2, m]."""
    return torch.stack([data & 15, data >> 4], dim=-2)


def _q4_0(blocks: torch.Tensor) -> Planes:
    """A scale, and 16 bytes: the low halves are the first 16 weights. Also IQ4_NL."""
    return _halves(blocks[:, 2:]).flatten(1), _numbers(blocks[:, :2], torch.float16), None


def _q5_0(blocks: torch.Tensor) -> Planes:
    bits = torch.arange(8, device=blocks.device, dtype=torch.uint8)
    fifth = (blocks[:, 2:6, None] >> bits & 1).flatten(1)
    codes = _halves(blocks[:, 6:]).flatten(1) | fifth << 4
    return codes, _numbers(blocks[:, :2], torch.float16), None


def _q8_0(blocks: torch.Tensor) -> Planes:
    return blocks[:, 2:] ^ 128, _numbers(blocks[:, :2], torch.float16), None


def _mxfp4(blocks: torch.Tensor) -> Planes:
    return _halves(blocks[:, 1:]).flatten(1), blocks[:, :1].contiguous(), None


def _pairs(data: torch.Tensor) -> torch.Tensor:
    """The 8 scales and 8 subtrahends of 6 bits in 12 bytes, as int16[blocks, 8] of two bytes."""
    first, second, rest = data[:, :4], data[:, 4:8], data[:, 8:]
    scales = torch.cat([first & 63, (rest & 15) | (first >> 6 << 4)], dim=1)
    lows = torch.cat([second & 63, (rest >> 4) | (second >> 6 << 4)], dim=1)
    pairs = torch.stack([scales, lows], dim=-1)
    return _numbers(pairs.flatten(1), torch.int16)


def _q4_k(blocks: torch.Tensor) -> Planes:
    codes = _halves(blocks[:, 16:].view(-1, 4, 32)).flatten(1)
    return codes, _pairs(blocks[:, 4:16]), _numbers(blocks[:, :4], torch.int32)


def _q5_k(blocks: torch.Tensor) -> Planes:
    bits = torch.arange(8, device=blocks.device, dtype=torch.uint8)[:, None]
    fifth = (blocks[:, None, 16:48] >> bits & 1).flatten(1)
    codes = _halves(blocks[:, 48:].view(-1, 4, 32)).flatten(1) | fifth << 4
    return codes, _pairs(blocks[:, 4:16]), _numbers(blocks[:, :4], torch.int32)


def _q6_k(blocks: torch.Tensor) -> Planes:
    low = _halves(blocks[:, :128].view(-1, 2, 64))
    shifts = torch.tensor([0, 2, 4, 6], device=blocks.device, dtype=torch.uint8)[:, None]
    high = blocks[:, 128:192].view(-1, 2, 1, 32) >> shifts & 3
    codes = low.flatten(1) | high.flatten(1) << 4
    scales = _numbers(blocks[:, 192:208], torch.int8)
    return codes, scales, _numbers(blocks[:, 208:], torch.float16)


_READERS: dict[str, tuple[CodeFormat, int, Callable[[torch.Tensor], Planes]]] = {
    "Q4_0": (CodeFormat("Q4_0", PLAIN, offset=8), 18, _q4_0),
    "Q5_0": (CodeFormat("Q5_0", PLAIN, 1, offset=16), 22, _q5_0),
    "Q8_0": (CodeFormat("Q8_0", PLAIN, 4, offset=128), 34, _q8_0),
    "IQ4_NL": (CodeFormat("IQ4_NL", PLAIN, table=IQ4_VALUES), 18, _q4_0),
    "MXFP4": (CodeFormat("MXFP4", PLAIN, table=FP4_DOUBLED), 17, _mxfp4),
    "Q4_K": (CodeFormat("Q4_K", PAIRS), 144, _q4_k),
    "Q5_K": (CodeFormat("Q5_K", PAIRS, 1), 176, _q5_k),
    "Q6_K": (CodeFormat("Q6_K", SIGNED, 2, offset=32), 210, _q6_k),
}
"""By ggml's name: the format, the bytes of a block, and what reads blocks."""
GGUF_TYPES = frozenset(_READERS)
BLOCK_BYTES = {name: num_bytes for name, (_, num_bytes, _) in _READERS.items()}


def gguf_codes(type_name: str, rows: torch.Tensor) -> Codes:
    """Read rows uint8[n, bytes of a row] of a type in `GGUF_TYPES`, on the device of `rows`."""
    format, block_bytes, read = _READERS[type_name]
    n, per_row = rows.shape[0], rows.shape[1] // block_bytes
    step = max(1, CHUNK_BLOCKS // per_row)
    chunks = [
        _codes_of(format, rows[i : i + step].reshape(-1, block_bytes), read, per_row)
        for i in range(0, n, step)
    ]
    low, high, scales, extra = (
        None if planes[0] is None else torch.cat([p for p in planes if p is not None])
        for planes in zip(*chunks, strict=True)
    )
    assert low is not None
    assert scales is not None
    table = float_table(format, rows.device)
    return Codes(format, low, high, scales, extra, table=table)


def _codes_of(
    format: CodeFormat,
    blocks: torch.Tensor,
    read: Callable[[torch.Tensor], Planes],
    per_row: int,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    codes, scales, extra = read(blocks)
    n = len(blocks) // per_row
    low, high = pack_codes(codes.reshape(n, -1), format.high_bits)
    return low, high, scales.view(n, -1), None if extra is None else extra.view(n, -1)
