"""The parts of `bench.py`. Each runs in a process of its own and saves its results as they come.

An exception ends only its part. Results that the part saved before are kept.
"""

import argparse
import gc
import hashlib
import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from rates import bandwidth, matmul_rate, read_bandwidth
from shapes import SHAPES

from stonechat_models.backends.transformers.attention.choose import choose_attention
from stonechat_models.hardware.device import choose_device


class Once(logging.Filter):
    """Lets each message of the engine pass once: a failure may repeat at every step."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        is_new = record.msg not in self._seen
        self._seen.add(str(record.msg))
        return is_new


class Section:
    """One part: its settings, its deadline, and its results so far."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        deadline: float,
        note: Callable[[dict[str, Any]], None],
    ) -> None:
        """Nothing new starts after `deadline`, in `time.time`. `note` saves the results."""
        self.arguments = arguments
        self.device = choose_device(arguments.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.results: dict[str, Any] = {}
        self._deadline = deadline
        self._note = note
        handler = logging.StreamHandler()
        handler.addFilter(Once())
        logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)

    def run(self, name: str) -> None:
        """Run the part `name`, such as "device" or "model tiny". Raises the part's exceptions."""
        shape = name.partition(" ")[2]
        import_part(name)(self, *([SHAPES[shape]] if shape else []))

    @property
    def seconds_left(self) -> float:
        return self._deadline - time.time()

    def keep(self, **values: Any) -> None:
        """Add `values` to the results, and save all of them at once."""
        self.results |= values
        self._note(self.results)

    def attempt(self, part: Callable[[], Any]) -> Any:
        """Return the result of `part`, or a dictionary that says why there is none."""
        if self.seconds_left < 0:
            return {"skipped": "out of time"}
        try:
            return part()
        except Exception as error:
            say(f"  {type(error).__name__}: {error}")
            return {"error": f"{type(error).__name__}: {error}"}

    def free(self) -> None:
        """Return memory that nothing uses to the device."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


PARTS = {
    "device": ("sections", "measure_device"),
    "warm": ("model_part", "warm_up"),
    "model": ("model_part", "measure_model"),
    "http": ("http_part", "measure_server"),
    "compare": ("compare_part", "measure_transformers"),
}


def import_part(name: str) -> Callable[..., None]:
    """Return the function of a part. Its modules take seconds to import."""
    module, function = PARTS[name.partition(" ")[0]]
    part: Callable[..., None] = getattr(import_module(module), function)
    return part


def measure_device(section: Section) -> None:
    from checks import kernel_errors

    device, arguments = section.device, section.arguments
    section.keep(environment=environment(device))
    section.keep(bandwidth_bytes_per_second=bandwidth(device))
    section.keep(read_bytes_per_second=read_bandwidth(device))
    section.keep(matmul_flops=matmul_rate(device, section.dtype))
    say(f"reads {section.results['read_bytes_per_second'] / 1e9:.0f} GB/s")
    if not arguments.check_kernels:
        return
    backend = choose_attention(arguments.attention, device, progress=say)
    errors = section.attempt(partial(kernel_errors, backend, device, section.dtype))
    section.keep(attention=backend.name, kernel_errors={backend.name: errors})


def environment(device: torch.device) -> dict[str, Any]:
    import transformers

    facts = {
        "device": str(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }
    if device.type == "cuda":
        import triton
        from triton.runtime.cache import triton_key

        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
            "triton_key": hashlib.sha256(triton_key().encode()).hexdigest()[:16],
        }
    return facts


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.split("\n")[0].strip() or None


def say(line: str) -> None:
    print(f"  {line.strip()}", flush=True)
