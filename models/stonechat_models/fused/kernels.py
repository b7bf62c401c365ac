"""Triton kernels for what a model does between its matrix products."""

import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(
    x,  # [rows, SIZE]
    weight,  # [SIZE]
    output,  # [rows, SIZE], contiguous
    stride_x,  # elements from a row to the next
    epsilon,
    offset,  # added to the weight
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
):
    """A program a row, in float32. ROUNDS_FIRST: the normalised row is rounded before scaling."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    loaded = tl.load(x + row * stride_x + columns, mask=inside, other=0.0)
    values = loaded.to(tl.float32)
    normalised = values * (1.0 / tl.sqrt(tl.sum(values * values, 0) / SIZE + epsilon))
    if ROUNDS_FIRST:
        normalised = normalised.to(loaded.dtype).to(tl.float32)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32) + offset
    result = normalised * scale
    tl.store(output + row * SIZE + columns, result.to(output.dtype.element_ty), mask=inside)


@triton.jit
def silu_mul_kernel(
    gate_up,  # [rows, 2 * SIZE], contiguous
    output,  # [rows, SIZE], contiguous
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (row, part): silu(first half) times second half, rounded after the silu too."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < SIZE
    loaded = tl.load(gate_up + row * 2 * SIZE + columns, mask=inside, other=0.0)
    up = tl.load(gate_up + row * 2 * SIZE + SIZE + columns, mask=inside, other=0.0)
    gate = loaded.to(tl.float32)
    activated = (gate / (1.0 + tl.exp(-gate))).to(loaded.dtype).to(tl.float32)
    result = activated * up.to(tl.float32)
    tl.store(output + row * SIZE + columns, result.to(output.dtype.element_ty), mask=inside)
