"""A matrix product for some rows of activations: by tensor cores, with the inputs split up.

The time of such a product is that of reading its weights, so all multiprocessors have to read at
once. A small matrix has too few tiles of outputs for that. Each program therefore multiplies a tile
of outputs by a part of the inputs, and the last program of a tile to end sums up the parts, always
in the same order.
"""

import triton
import triton.language as tl

from stonechat_models.backends.transformers.attention.triton_tile import dot
from stonechat_models.backends.transformers.fused.kernels import activated
from stonechat_models.hardware.dependent_launch import prefetch_rows, wait_for_inputs


@triton.jit
def load_columns(rows, columns, size, IS_EVEN: tl.constexpr):
    """The numbers at these columns of `rows` (pointers [R, 1]), zeros from column `size` on."""
    if IS_EVEN:
        return tl.load(rows + columns[None, :])
    return tl.load(rows + columns[None, :], mask=(columns < size)[None, :], other=0.0)


@triton.jit
def is_last_part(num_done, num_splits):
    """Counts a part, which this program has stored. True if all are; the count is then 0 again."""
    tl.debug_barrier()  # all threads have stored before one of them counts the part
    is_last = tl.atomic_add(num_done, 1, sem="acq_rel") == num_splits - 1
    if is_last:
        tl.store(num_done, 0)
    return is_last


@triton.jit
def sum_of_parts(parts, num_splits, stride, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """The sum [HEIGHT, WIDTH] of what lies at the pointers `parts` and each `stride` behind."""
    sums = tl.zeros([HEIGHT, WIDTH], tl.float32)
    for i in range(0, num_splits):
        sums += tl.load(parts + i * stride, cache_modifier=".cg")
    return sums


@triton.jit
def store_product(
    first_sums,  # float32[ROWS, BLOCK_N]
    second_sums,  # float32[ROWS, BLOCK_N], if GATED
    bias,
    residual,
    output,
    rows,
    outputs,
    num_rows,
    num_outputs,
    HAS_BIAS: tl.constexpr,
    ADDS: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
):
    """Stores a tile. Numbers are rounded as in separate operators; the residual is added before."""
    dtype: tl.constexpr = output.dtype.element_ty
    is_output = outputs < num_outputs
    value = first_sums
    if HAS_BIAS:
        value += tl.load(bias + outputs, mask=is_output, other=0.0).to(tl.float32)[None, :]
    if GATED:
        up = second_sums
        if HAS_BIAS:
            at = bias + num_outputs + outputs
            up += tl.load(at, mask=is_output, other=0.0).to(tl.float32)[None, :]
        gate = activated(value.to(dtype).to(tl.float32), GELU)
        value = gate.to(dtype).to(tl.float32) * up.to(dtype).to(tl.float32)
    inside = (rows < num_rows)[:, None] & is_output[None, :]
    at = rows[:, None] * num_outputs + outputs[None, :]
    if ADDS:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + at, value.to(dtype), mask=inside)


@triton.jit(do_not_specialize=["num_rows", "num_outputs", "steps"])
def some_rows_kernel(
    x,  # [num_rows, size]
    weight,  # [num_outputs, size], contiguous; if GATED [2 * num_outputs, size]
    bias,  # as many as weight has rows
    residual,  # [num_rows, num_outputs], contiguous; may be the output
    output,  # [num_rows, num_outputs], contiguous
    partial,  # float32[parts, splits, 2 if GATED else 1, ROWS, BLOCK_N], if IS_SPLIT
    num_done,  # int32[parts], zeros, if IS_SPLIT. They are zeros again at the end.
    num_rows,
    num_outputs,
    size,
    steps,  # of a program: it multiplies BLOCK_K inputs in each
    stride_x,  # elements from one row to the next
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_EVEN: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADDS: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    UPCAST: tl.constexpr,
    LINES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (part, split): BLOCK_N outputs of all rows, from a part of the inputs.

    GATED: of act(first half) times second half. ADDS: plus `residual`. IS_EVEN: BLOCK_K divides
    `size`. LINES: how many lines of each row of the weight are fetched before the wait.
    """
    part = tl.program_id(0)
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    rows = tl.arange(0, ROWS)
    outputs = part * BLOCK_N + tl.arange(0, BLOCK_N)
    first = split * steps * BLOCK_K
    last = tl.minimum(first + steps * BLOCK_K, size)
    weight_row = tl.minimum(outputs, num_outputs - 1).to(tl.int64)
    first_rows = weight + weight_row[:, None] * size
    second_rows = weight + (weight_row + num_outputs)[:, None] * size
    if EARLY and LINES > 0:
        prefetch_rows(first_rows, first, last, LINES)
        if GATED:
            prefetch_rows(second_rows, first, last, LINES)
    wait_for_inputs(EARLY)
    x_rows = x + tl.minimum(rows, num_rows - 1)[:, None] * stride_x
    first_sums = tl.zeros([ROWS, BLOCK_N], tl.float32)
    second_sums = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for start in range(first, last, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        inputs = load_columns(x_rows, columns, size, IS_EVEN)
        weights = load_columns(first_rows, columns, size, IS_EVEN)
        first_sums += dot(inputs, tl.trans(weights), "ieee", UPCAST)
        if GATED:
            weights = load_columns(second_rows, columns, size, IS_EVEN)
            second_sums += dot(inputs, tl.trans(weights), "ieee", UPCAST)
    is_last = True
    if IS_SPLIT:
        tile_size: tl.constexpr = ROWS * BLOCK_N
        split_size: tl.constexpr = tile_size * 2 if GATED else tile_size
        cells = rows[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        parts = partial + part * num_splits * split_size + cells
        tl.store(parts + split * split_size, first_sums)
        if GATED:
            tl.store(parts + split * split_size + tile_size, second_sums)
        is_last = is_last_part(num_done + part, num_splits)
        if is_last:
            first_sums = sum_of_parts(parts, num_splits, split_size, ROWS, BLOCK_N)
            if GATED:
                second = parts + tile_size
                second_sums = sum_of_parts(second, num_splits, split_size, ROWS, BLOCK_N)
    if is_last:
        store_product(
            first_sums,
            second_sums,
            bias,
            residual,
            output,
            rows,
            outputs,
            num_rows,
            num_outputs,
            HAS_BIAS,
            ADDS,
            GATED,
            GELU,
        )
