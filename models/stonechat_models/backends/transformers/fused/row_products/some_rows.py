"""Launches the product for some rows, with its gate or residual in the same kernel."""

from dataclasses import dataclass, field
from functools import partial

import torch
import triton
from torch import nn

from stonechat_models.backends.transformers.fused.row_products.some_rows_kernel import (
    some_rows_kernel,
)
from stonechat_models.hardware.dependent_launch import launch_settings

ROW_COUNTS = (8, 16, 32, 64)
"""Numbers of rows that it may be chosen for: those of decode steps in CUDA graphs."""
LEAST_STEPS = 4
"""Steps of the inner loop that a program makes at least."""
NUM_COUNTERS = 1 << 12


@dataclass(frozen=True, slots=True)
class SomeRowsTile:
    """What one program multiplies at a time, and how Triton compiles it."""

    outputs: int = 64
    inputs: int = 64
    num_warps: int = 4
    num_stages: int = 5
    waves: int = 2
    """Programs per multiprocessor, as far as splitting the inputs can make them."""
    num_lines: int = 0
    """Lines of 128 bytes of each row of the weight that are fetched before the inputs are there."""


@dataclass(frozen=True, slots=True, eq=False)
class SomeRows:
    """A tile, and what its launches on a device share: they run one after the other."""

    tile: SomeRowsTile
    num_multiprocessors: int
    counters: torch.Tensor = field(repr=False)
    """int32 zeros."""

    @classmethod
    def on(cls, device: torch.device, tile: SomeRowsTile) -> "SomeRows":
        num_multiprocessors = 1
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            num_multiprocessors = properties.multi_processor_count
        counters = torch.zeros(NUM_COUNTERS, dtype=torch.int32, device=device)
        return cls(tile, num_multiprocessors, counters)

    def steps(self, num_parts: int, size: int) -> int:
        """How many tiles of the `size` inputs a program multiplies, for `num_parts` of outputs."""
        tile = self.tile
        splits = min(
            self.num_multiprocessors * tile.waves // num_parts,
            size // (tile.inputs * LEAST_STEPS),
        )
        if splits < 2 or num_parts > len(self.counters):
            splits = 1
        return int(triton.cdiv(size, splits * tile.inputs))


def some_rows_product(
    x: torch.Tensor,
    linear: nn.Module,
    how: SomeRows,
    *,
    residual: torch.Tensor | None = None,
    is_gated: bool = False,
    uses_gelu: bool = False,
    compiles_only: bool = False,
) -> torch.Tensor:
    """linear(x) for rows [M, k] in half precision, as [M, n]; M is at most 64.

    With `is_gated` the result is act(first half) * second half, and n is half of the layer's
    outputs; act is SiLU or GELU's tanh approximation. `residual` [M, n] is added in place and
    returned. `compiles_only`: the kernel is compiled and not run.
    """
    weight, bias = linear.weight, linear.bias
    assert isinstance(weight, torch.Tensor)
    tile, size = how.tile, weight.shape[1]
    num_outputs = weight.shape[0] // (2 if is_gated else 1)
    if x.stride(1) != 1:
        x = x.contiguous()
    output = x.new_empty(len(x), num_outputs) if residual is None else residual
    assert output.is_contiguous()
    assert weight.is_contiguous()
    block = max(16, tile.outputs // 2) if is_gated else tile.outputs
    num_parts = triton.cdiv(num_outputs, block)
    steps = how.steps(num_parts, size)
    splits = triton.cdiv(size, steps * tile.inputs)
    rows = max(16, triton.next_power_of_2(len(x)))
    num_sums = num_parts * splits * rows * block * (2 if is_gated else 1) if splits > 1 else 0
    sums = torch.empty(num_sums, dtype=torch.float32, device=x.device)
    grid = (num_parts, splits)
    kernel = some_rows_kernel
    launch = partial(kernel.warmup, grid=grid) if compiles_only else kernel[grid]
    launch(
        x,
        weight,
        weight if bias is None else bias,
        output,
        output,
        sums,
        how.counters,
        len(x),
        num_outputs,
        size,
        steps,
        x.stride(0),
        ROWS=rows,
        BLOCK_N=block,
        BLOCK_K=tile.inputs,
        IS_EVEN=size % tile.inputs == 0,
        IS_SPLIT=splits > 1,
        HAS_BIAS=bias is not None,
        ADDS=residual is not None,
        GATED=is_gated,
        GELU=uses_gelu,
        UPCAST=x.dtype == torch.bfloat16 and x.device.type == "cpu",
        LINES=tile.num_lines,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **launch_settings(x.device),
    )
    return output
