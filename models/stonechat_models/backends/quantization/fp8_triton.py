"""A Triton kernel that quantises rows to float8, with one scale per row.

PyTorch's operators would need several kernels, each of which reads and writes the rows.
"""

import torch
import triton
import triton.language as tl

from stonechat_models.backends.quantization.device_support import FP8, FP8_MAX, LEAST_PEAK


@triton.jit
def fp8_rows_kernel(
    x,  # [rows, SIZE]
    quantised,  # float8_e4m3fn[rows, SIZE], contiguous
    scales,  # float32[rows]
    stride_x,  # elements from one row to the next
    limit,  # largest float8 value
    least,  # lower bound of a row's largest value
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row: x ~ quantised * scale."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    values = tl.load(x + row * stride_x + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values), 0), least) / limit
    scaled = tl.minimum(tl.maximum(values / scale, -limit), limit)
    tl.store(quantised + row * SIZE + columns, scaled.to(quantised.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


def fp8_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `quantise_rows` in one kernel."""
    num_rows, size = x.shape
    if x.stride(1) != 1:
        x = x.contiguous()
    quantised = torch.empty((num_rows, size), dtype=FP8, device=x.device)
    scales = torch.empty((num_rows, 1), dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(size)
    fp8_rows_kernel[(num_rows,)](
        x,
        quantised,
        scales,
        x.stride(0),
        FP8_MAX,
        LEAST_PEAK,
        SIZE=size,
        BLOCK=block,
        num_warps=max(1, min(16, block // 512)),
    )
    return quantised, scales
