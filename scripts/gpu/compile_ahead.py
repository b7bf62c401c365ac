"""Compiles Triton kernels in worker processes, through the code that launches them.

A worker needs no GPU. It calls that code with tensors without memory, and kernels are compiled for
the device's target instead of launched. Triton's cache on disk then has them for the process that
launches them for real.
"""

from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from stonechat_models.hardware import dependent_launch


class NoDevice:
    """Stands in for Triton's driver where kernels are only compiled."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self._target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def only_compile(capability: tuple[int, int], is_early: bool = False) -> None:
    """From now on, in this process, launches only compile, for a device of this capability.

    `is_early`: what `launches_early` answers for the device.
    """
    driver.set_active(NoDevice(capability))
    dependent_launch.launches_early = lambda device: is_early
    launch = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return launch(self, *args, grid=grid, warmup=True, **kwargs)

    JITFunction.run = run
