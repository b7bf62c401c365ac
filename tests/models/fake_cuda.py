"""A fake CUDA device: all its operations run on the CPU, at once.

It runs the code paths of CUDA, and the tests of `tests/gpu`, on a machine without a GPU. Load it as
a plugin of pytest (`-p tests.models.fake_cuda`), with `TRITON_INTERPRET=1`. Tensors for the device
stay on the CPU, a graph runs its step again, and `FREE_BYTES` of memory are free whatever is
allocated. With `FAKE_CUDA_CHOOSES=1` engines time kernels of their own and then use them, which
takes minutes. It shows that the code paths work together and give the right numbers. It shows
nothing about streams or speed.
"""

import os
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.runtime.interpreter  # noqa: F401  # `tests/conftest.py` makes it faster, if imported
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
FREE_BYTES = 1 << 30
TOTAL_BYTES = 2 << 30
CAPABILITY = (9, 0)


def on_cpu(value: Any) -> Any:
    """Return the CPU if `value` names a CUDA device, else `value`."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return CPU
    if isinstance(value, str) and value.startswith("cuda"):
        return CPU
    return value


class ToCpu(TorchFunctionMode):
    """Sends every operation that names a CUDA device to the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        if func is torch.Tensor.pin_memory:
            return args[0]
        kwargs = {name: on_cpu(value) for name, value in (kwargs or {}).items()}
        if kwargs.get("pin_memory"):
            if func is torch.tensor and isinstance(args[0], np.ndarray):
                raise RuntimeError("Can't pin tensor constructed from numpy")  # as PyTorch does
            kwargs["pin_memory"] = False
        return func(*map(on_cpu, args), **kwargs)


class Stream:
    def __init__(self, *_args: object, **_settings: object) -> None:
        pass

    def wait_stream(self, _other: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Event(Stream):
    num_measured = 0

    def record(self, *_args: object) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, _end: object) -> float:
        """Less each time, so that of several ways the one that is tried last is the fastest."""
        Event.num_measured += 1
        return 1.0 / Event.num_measured


class Graph:
    def replay(self) -> None:
        pass


class Generator(torch.Generator):
    """Draws on the CPU, whatever its device."""

    def __new__(cls, device: Any = CPU) -> "Generator":
        return super().__new__(cls, on_cpu(device))


class SyncDebug:
    """Stores the sync debug mode, which has no effect here."""

    sync_debug_mode = 0

    def set_sync_debug_mode(self, mode: int | str) -> None:
        self.sync_debug_mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)

    def get_sync_debug_mode(self) -> int:
        return self.sync_debug_mode


def rerun(capture: Any) -> Any:
    """Return a `CudaCapturer.capture` whose replays run the step again, into the same tensor."""

    def capture_step(self: Any, step: Any) -> Any:
        output = capture(self, step)()

        @torch.inference_mode()
        def replay() -> torch.Tensor:
            return output.copy_(step())

        return replay

    return capture_step


def choose_by_time() -> None:
    """Let engines choose kernels by time, among few of them: the interpreter is slow."""
    from stonechat_models.backends.transformers.attention import tile_choice
    from stonechat_models.backends.transformers.cuda import kernel_timing
    from stonechat_models.backends.transformers.fused import coded_choice, product_choice

    kernel_timing.GraphTimer.works_on = staticmethod(lambda device: True)
    kernel_timing.NUM_REPLAYS = 1
    product_choice.TIMED_BYTES = coded_choice.TIMED_BYTES = 1
    product_choice.TILES = (product_choice.FewRowsTile(rows=64, num_warps=1),)
    product_choice.SOME_TILES = product_choice.SOME_TILES[-1:]
    coded_choice.CODED_TILES = {n: tiles[-1:] for n, tiles in coded_choice.CODED_TILES.items()}
    tile_choice.NUM_SEQS, tile_choice.CONTEXT, tile_choice.NUM_CALLS = (1, 2), 40, (1, 1)
    tile_choice.CACHE_BYTES = 1 << 20


def install() -> None:
    """Replace the functions of `torch.cuda` for the rest of the process."""
    assert not torch.cuda.is_available(), "there is a real CUDA device"
    assert os.environ.get("TRITON_INTERPRET") == "1"
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # `ToCpu` is active in one thread only
    sync_debug = SyncDebug()
    properties = SimpleNamespace(
        name="fake", multi_processor_count=4, total_memory=TOTAL_BYTES, major=9, minor=0
    )
    replacements = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "fake",
        "get_device_capability": lambda *_: CAPABILITY,
        "get_device_properties": lambda *_: properties,
        "is_bf16_supported": lambda *_: True,
        "mem_get_info": lambda *_: (FREE_BYTES, TOTAL_BYTES),
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "empty_cache": lambda: None,
        "synchronize": lambda *_: None,
        "set_sync_debug_mode": sync_debug.set_sync_debug_mode,
        "get_sync_debug_mode": sync_debug.get_sync_debug_mode,
        "device": lambda *_: nullcontext(),
        "device_of": lambda *_: nullcontext(),
        "set_device": lambda *_: None,
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda *_: Stream(),
        "stream": lambda *_: nullcontext(),
        "graph_pool_handle": lambda: 0,
        "CUDAGraph": Graph,
        "graph": contextmanager(lambda *_args, **_settings: iter([None])),
    }
    for name, value in replacements.items():
        setattr(torch.cuda, name, value)
    torch.Generator = Generator  # type: ignore[misc]
    from stonechat_models.backends.transformers.cuda.memory import CudaCapturer

    CudaCapturer.capture = rerun(CudaCapturer.capture)
    if os.environ.get("FAKE_CUDA_CHOOSES") == "1":
        choose_by_time()
    from stonechat_models.backends.quantization.choose import cuda_linear
    from stonechat_models.backends.transformers.loading import quantize

    def on_cuda(weight: Any, bias: Any, precision: Any, _team: Any, kind: Any = None) -> Any:
        return cuda_linear(weight, bias, precision)

    quantize.quantized_linear = on_cuda  # the original looks at the weights' device
    ToCpu().__enter__()


def pytest_configure() -> None:
    install()
