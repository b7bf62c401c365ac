"""Launches of a Triton kernel that is always compiled alike, without Triton's look-up of each."""

from typing import Any


class Launcher:
    """Launches a kernel with the same settings each time.

    Triton looks at each argument, constant and global variable to find the compiled kernel, which
    takes the host longer than the launch itself. Here the first launch finds it for all. So the
    arguments must keep their types, the alignment of their addresses, and all that is compiled in:
    constants, and whether an integer is 1 or a multiple of 16.
    """

    def __init__(self, kernel: Any, **settings: int) -> None:
        self._kernel, self._settings = kernel, settings
        self._compiled: Any = None

    def __call__(self, grid: tuple[int, int, int], *args: Any) -> None:
        """Launch the kernel. `args` are all of its parameters, constants too, in order."""
        if self._compiled is not None:
            self._compiled[grid](*args)
        else:  # in Triton's interpreter nothing is compiled
            self._compiled = self._kernel[grid](*args, **self._settings)
