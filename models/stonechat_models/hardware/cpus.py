"""The processors that this process may run on. Imports no other module, so all may import it."""

import ctypes
import os
import platform
from collections.abc import Callable
from pathlib import Path

GET_VECTOR_LENGTH, LENGTH_MASK = 51, 0xFFFF  # PR_SVE_GET_VL, PR_SVE_VL_LEN_MASK of Linux


def usable_cpus() -> int:
    """Return how many logical processors this process may run on.

    Its CPU affinity decides, on systems that have one.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_field(*names: str) -> str:
    """Return the first value that Linux reports under one of these names, or an empty string."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in fields if key.strip() in names), "")


def cpu_name() -> str:
    """Return the processor's name, or its kind where the system has no name."""
    return processor_field("model name") or platform.processor() or platform.machine()


def processor_flags() -> frozenset[str]:
    """Return the instruction sets that Linux reports, by its names (`flags`, on Arm `Features`).

    With SVE the length of its vectors in bits is one more name, such as `sve256`.
    """
    flags = frozenset(processor_field("flags", "Features").split())
    return flags | {f"sve{sve_bits(ctypes.CDLL(None).prctl)}"} if "sve" in flags else flags


def sve_bits(prctl: Callable[..., int]) -> int:
    """Return the length of SVE vectors in this process, as a system call tells it. 0: no SVE."""
    length = prctl(GET_VECTOR_LENGTH, 0, 0, 0, 0)
    return 8 * (length & LENGTH_MASK) if length >= 0 else 0
