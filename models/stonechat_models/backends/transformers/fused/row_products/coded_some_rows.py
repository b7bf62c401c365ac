"""Multiplies some rows by quantised weights as they are stored, by tensor cores."""

from dataclasses import dataclass, replace
from functools import partial

import torch
import triton

from stonechat_models.backends.quantization.codes.code_products import (
    constants,
    has_dot2,
    planes_of,
    table_words,
)
from stonechat_models.backends.quantization.codes.codes import PLAIN, SIGNED, SMALL, UNIT, Codes
from stonechat_models.backends.transformers.fused.row_products.coded_some_rows_kernel import (
    coded_some_rows_kernel,
)
from stonechat_models.backends.transformers.fused.row_products.some_rows import SomeRows
from stonechat_models.hardware.dependent_launch import launch_settings

EXPONENT_OFFSET = 128
FLOAT8_LIMIT = 128.0
"""Scales of float8 numbers are smaller: the kernel multiplies them by 2**120."""


@dataclass(frozen=True, slots=True, eq=False)
class CodedRows:
    """A way of a `CodedLinear` to multiply up to 64 rows, in half precision."""

    how: SomeRows

    def __call__(
        self,
        output: torch.Tensor,
        x: torch.Tensor,
        codes: Codes,
        bias: torch.Tensor | None,
        *,
        compiles_only: bool = False,
    ) -> None:
        """Write x [rows, k] times the transposed weight, plus the bias [n], to output [rows, n].

        The columns of both are contiguous, and codes are those of `with_wide_scales`.
        `compiles_only`: the kernel is compiled and not run.
        """
        how, tile = self.how, self.how.tile
        n, k = codes.shape
        num_parts = triton.cdiv(n, tile.outputs)
        steps = how.steps(num_parts, k)
        splits = triton.cdiv(k, steps * tile.inputs)
        rows = max(16, triton.next_power_of_2(len(x)))
        num_sums = num_parts * splits * tile.outputs * rows if splits > 1 else 0
        sums = torch.empty(num_sums, dtype=torch.float32, device=x.device)
        grid = (num_parts, splits)
        kernel = coded_some_rows_kernel
        launch = partial(kernel.warmup, grid=grid) if compiles_only else kernel[grid]
        launch(
            x,
            *planes_of(codes),
            x if bias is None else bias,
            output,
            sums,
            how.counters,
            *(len(x), n, steps, x.stride(0), output.stride(0)),
            **constants(codes) | table_words(codes.format.table),
            HAS_BIAS=bias is not None,
            ROWS=rows,
            BLOCK_N=tile.outputs,
            BLOCK_UNITS=tile.inputs // UNIT,
            IS_EVEN=k % tile.inputs == 0,
            IS_SPLIT=splits > 1,
            UPCAST=x.dtype == torch.bfloat16 and x.device.type == "cpu",
            NATIVE=has_dot2(x.device),
            LINES=tile.num_lines,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **launch_settings(x.device),
        )


def can_multiply(codes: Codes) -> bool:
    """Whether the kernel has these codes."""
    return not codes.format.is_float8 or float(codes.scales.max()) < FLOAT8_LIMIT


def with_wide_scales(codes: Codes) -> Codes:
    """The same weights, with scales that a device copies ahead of their use.

    It copies 4 bytes at least. The scales of units lie side by side; those of larger groups, which
    are apart, become float32. Codes stay where they are.
    """
    format, scales, extra = codes.format, codes.scales, codes.extra
    if format.scaling == SIGNED:
        assert extra is not None
        return replace(codes, extra=extra.float())
    if format.scaling == PLAIN and scales.dtype == torch.uint8:  # of units; exact in bfloat16
        ones = torch.ones(scales.shape, device=scales.device)
        powers = torch.ldexp(ones, scales.int() - EXPONENT_OFFSET)
        return replace(codes, scales=powers.bfloat16())
    if codes.group <= UNIT or (format.scaling == PLAIN and scales.dtype == torch.float32):
        return codes
    if format.scaling == SMALL:
        assert extra is not None
        wide = scales.view(torch.float8_e4m3fn).float() * extra
        return replace(codes, format=replace(format, scaling=PLAIN), scales=wide, extra=None)
    wide = scales.float()
    if extra is None:
        return replace(codes, scales=wide)
    subtracted = extra.float() * (wide if extra.dtype == torch.uint8 else 1.0)
    return replace(codes, scales=wide, extra=subtracted)
