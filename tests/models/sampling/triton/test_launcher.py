"""Launches without Triton's look-up."""

from typing import Any

from stonechat_models.sampling.triton.launcher import Launcher


class Kernel:
    """Records launches: of the kernel by name, and of what it was compiled to."""

    def __init__(self, compiles: bool) -> None:
        self.compiles = compiles
        self.launches: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def run(*args: int, **settings: int) -> Any:
            self.launches.append(("looked up", grid, args, settings))
            return Compiled(self) if self.compiles else None

        return run


class Compiled:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        return lambda *args: self.kernel.launches.append(("direct", grid, args))


def test_only_the_first_launch_is_looked_up() -> None:
    kernel = Kernel(compiles=True)
    launch = Launcher(kernel, num_warps=2)
    launch((1, 2, 1), 7, 8)
    launch((3, 1, 1), 9, 8)
    assert kernel.launches == [
        ("looked up", (1, 2, 1), (7, 8), {"num_warps": 2}),
        ("direct", (3, 1, 1), (9, 8)),
    ]


def test_each_launch_is_looked_up_if_nothing_is_compiled() -> None:
    kernel = Kernel(compiles=False)
    launch = Launcher(kernel)
    launch((1, 1, 1))
    launch((1, 1, 1))
    assert [launch[0] for launch in kernel.launches] == ["looked up", "looked up"]
