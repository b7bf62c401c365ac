"""Multiplies by codes, in the way that the number of rows asks for."""

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import triton

from stonechat_models.backends.quantization.codes.code_kernels import (
    FLOAT4,
    FLOAT8,
    INTEGERS,
    TABLE,
    dequantise_kernel,
)
from stonechat_models.backends.quantization.codes.code_rows_kernel import rows_kernel
from stonechat_models.backends.quantization.codes.codes import SIGNED, UNIT, CodeFormat, Codes
from stonechat_models.backends.quantization.scratch import Scratch
from stonechat_models.checkpoint.packed.floats import FP4_DOUBLED
from stonechat_models.hardware.dependent_launch import launch_settings

MAX_ROWS = 4
"""Up to so many rows of activations are multiplied by `rows_kernel`. With more, parts of the weight
are dequantised first, and PyTorch multiplies."""
KERNEL_ROWS = (1, 2, MAX_ROWS, MAX_ROWS + 1)
"""With these numbers of rows, each kernel runs at least once."""
WIDE = 16384
"""From so many rows of the weight on, a program of `rows_kernel` computes more of them."""
TABLE_OFFSET = 128
INTERPRETED_ROWS = 128
"""Rows of the weight for one program in Triton's interpreter, which runs one after the other."""


def multiply_into(
    output: torch.Tensor,
    x: torch.Tensor,
    codes: Codes,
    bias: torch.Tensor | None,
    scratch: Scratch,
    *,
    compiles_only: bool = False,
) -> None:
    """Write x [rows, k] times the transposed weight, plus the bias [n], to output [rows, n].

    The columns of both are contiguous. `compiles_only`: kernels are compiled and not run.
    """
    if len(x) <= MAX_ROWS:
        _launch_rows(output, x, codes, bias, compiles_only)
        return
    n, k = codes.shape
    memory = scratch.rows(k)
    for start in range(0, n, len(memory)):
        weight = memory[: min(len(memory), n - start)]
        dequantise_into(weight, codes, start, compiles_only=compiles_only)
        if compiles_only:
            return
        end = start + len(weight)
        part = output[:, start:end]
        if bias is None:
            torch.mm(x, weight.T, out=part)
        else:
            torch.addmm(bias[start:end], x, weight.T, out=part)


def _launch_rows(
    output: torch.Tensor,
    x: torch.Tensor,
    codes: Codes,
    bias: torch.Tensor | None,
    compiles_only: bool,
) -> None:
    num_rows, n = output.shape
    tile = rows_tile(codes, num_rows)
    if x.device.type == "cpu":
        tile = replace(tile, n=INTERPRETED_ROWS)
    grid = (triton.cdiv(n, tile.n),)
    launch = partial(rows_kernel.warmup, grid=grid) if compiles_only else rows_kernel[grid]
    launch(
        x,
        *planes_of(codes),
        x if bias is None else bias,
        output,
        *(num_rows, n, x.stride(0), output.stride(0)),
        **constants(codes) | table_words(codes.format.table),
        HAS_BIAS=bias is not None,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_UNITS=tile.units,
        NATIVE=has_dot2(x.device),
        num_warps=tile.num_warps,
        **launch_settings(x.device),
    )


def has_dot2(device: torch.device) -> bool:
    """Whether the device has the instruction of `dot2`."""
    return device.type != "cpu" and torch.version.hip is None


@cache
def table_words(table: tuple[int, ...]) -> dict[str, int]:
    """A table's values plus 128, four in an int32. Codes with a table stand for these bytes."""
    values = np.array(table or [0] * 16) + TABLE_OFFSET
    words = values.astype(np.uint8).view(np.int32).tolist()
    constants = {f"TABLE_{i}": word for i, word in enumerate(words)}
    return constants | ({"OFFSET": TABLE_OFFSET} if table else {})


@dataclass(frozen=True, slots=True)
class CodeTile:
    """What one program computes: rows of x, rows of the weight, and units at a time."""

    m: int
    n: int
    units: int
    num_warps: int


def rows_tile(codes: Codes, num_rows: int) -> CodeTile:
    """The tile of `rows_kernel`. A lane reads whole units, so a warp reads 32 of them at a time.

    With 4 rows of x, 8 rows of the weight need more registers than a lane has.
    """
    n, k = codes.shape
    warps = 2 if k >= 64 * UNIT else 1
    m = triton.next_power_of_2(num_rows)
    is_wide = num_rows == 1 and codes.format.high_bits == 0 and n >= WIDE
    return CodeTile(m, 16 if is_wide else 8 if m < 4 else 4, 32 * warps, warps)


def planes_of(codes: Codes) -> tuple[torch.Tensor, ...]:
    """The planes as the kernels take them. A plane that the codes lack is any tensor."""
    high = codes.low if codes.high is None else codes.high
    extra = codes.scales if codes.extra is None else codes.extra
    return (codes.low, high, codes.scales, extra)


def _table(codes: Codes) -> torch.Tensor:
    return codes.scales if codes.table is None else codes.table


def constants(codes: Codes) -> dict[str, Any]:
    """The constants of the kernels that follow from the codes."""
    halves = 2 if codes.format.scaling == SIGNED or codes.group < UNIT else 1
    return {
        "UNITS": codes.shape[1] // UNIT,
        "UNITS_PER_SCALE": max(1, codes.group // UNIT),
        "HALVES": halves,
        "HIGH_BITS": codes.format.high_bits,
        "SCALING": codes.format.scaling,
        "OFFSET": codes.format.offset,
        "KIND": _kind(codes.format),
    }


def _kind(format: CodeFormat) -> int:
    if format.is_float8:
        kind = FLOAT8
    elif format.table == FP4_DOUBLED:
        kind = FLOAT4
    else:
        kind = TABLE if format.table else INTEGERS
    return int(kind.value)


def dequantise_into(
    output: torch.Tensor,
    codes: Codes,
    first: int = 0,
    index: torch.Tensor | None = None,
    *,
    compiles_only: bool = False,
) -> None:
    """Write rows of the weight to output [rows, k]: from `first` on, or those of `index` int64.

    `compiles_only`: the kernel is compiled and not run.
    """
    num_rows, k = output.shape
    units = k // UNIT
    block_units = min(triton.next_power_of_2(units), 16)
    block_n = INTERPRETED_ROWS if output.device.type == "cpu" else 4
    grid = (triton.cdiv(num_rows, block_n), triton.cdiv(units, block_units))
    kernel = dequantise_kernel
    launch = partial(kernel.warmup, grid=grid) if compiles_only else kernel[grid]
    launch(
        codes.low if index is None else index,
        *planes_of(codes),
        _table(codes),
        output,
        *(num_rows, first),
        **constants(codes),
        HAS_INDEX=index is not None,
        BLOCK_N=block_n,
        BLOCK_UNITS=block_units,
        num_warps=4,
        **launch_settings(output.device),
    )
