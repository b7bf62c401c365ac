"""Times kernels on a CUDA device at load, to choose among them, and compiles them side by side."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
import triton

from stonechat_models.backends.transformers.cuda.memory import CudaCapturer

NUM_REPLAYS = 4

Run = Callable[[], torch.Tensor]
Timer = Callable[[Run], float]


class GraphTimer:
    """Seconds that a run's kernels take in a CUDA graph: the least of a few replays."""

    @staticmethod
    def works_on(device: torch.device) -> bool:
        """Whether there are CUDA graphs on this device."""
        return device.type == "cuda"

    def __init__(self, device: torch.device) -> None:
        self._capturer = CudaCapturer(device)

    def __call__(self, run: Run) -> float:
        replay = self._capturer.capture(run)
        milliseconds = []
        for _ in range(NUM_REPLAYS):
            start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            start.record()
            replay()
            end.record()
            end.synchronize()
            milliseconds.append(start.elapsed_time(end))
        return float(min(milliseconds)) / 1000


@contextmanager
def compiled_side_by_side() -> Iterator[None]:
    """Inside, `kernel.warmup` compiles in threads; at the end all is compiled.

    A kernel that does not compile is left out: it fails again where it is launched.
    """
    with ThreadPoolExecutor() as threads, triton.AsyncCompileMode(threads, ignore_errors=True):
        yield
