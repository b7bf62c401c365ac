"""Programmatic dependent launch: a kernel starts while the one before it in its stream still ends.

Between two kernels of a stream a device otherwise stands idle for about a microsecond. A kernel
launched in this way must call `wait_for_inputs` in every program, before it reads what another
kernel wrote, before it writes at all, and before it returns. Then any kernels may follow each
other: a wait ends when the kernel before is complete, and that one waited too. Weights may be read
before the wait, and so may what copies and kernels that start late wrote.

It needs compute capability 9.0. `STONECHAT_PDL=0` switches it off, to measure what it gains.
"""

import os
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

VARIABLE = "STONECHAT_PDL"
LEAST_CAPABILITY = (9, 0)


@triton.jit  # type: ignore[untyped-decorator]
def wait_for_inputs(EARLY: tl.constexpr) -> None:  # noqa: N803
    """Let the next kernel start, and wait until the kernels before this one are complete.

    EARLY: whether this kernel was launched with `launch_settings`; otherwise there is no wait.
    """
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit  # type: ignore[untyped-decorator]
def prefetch_rows(rows, first, last, LINES: tl.constexpr) -> None:  # type: ignore[no-untyped-def]  # noqa: N803
    """Ask for the first lines of 128 bytes of `rows` (pointers [R, 1]) from column `first` on.

    The device's cache then has them when they are loaded. All multiprocessors share it, so a kernel
    may still write what is asked for. `last` is the end of the columns. Triton's interpreter cannot
    run it.
    """
    line: tl.constexpr = 1024 // rows.dtype.element_ty.primitive_bitwidth
    columns = tl.minimum(first + tl.arange(0, LINES) * line, last - 1)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
        "=r,l",
        [(rows + columns[None, :]).to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@cache
def launch_settings(device: torch.device) -> dict[str, Any]:
    """Keyword arguments for the launch of a kernel that has a constant `EARLY` and waits."""
    if not launches_early(device):
        return {"EARLY": False}
    return {"EARLY": True, "launch_pdl": True}


def launches_early(device: torch.device) -> bool:
    """Whether kernels on this device are launched while the kernel before still ends."""
    if device.type != "cuda" or triton.knobs.runtime.interpret or torch.version.hip is not None:
        return False
    if os.environ.get(VARIABLE) == "0":
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
