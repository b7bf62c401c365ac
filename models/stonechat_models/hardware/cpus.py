"""The processors that this process may run on. Imports no other module, so all may import it."""

import os
from pathlib import Path


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


def processor_flags() -> frozenset[str]:
    """Return the instruction sets that Linux reports, by its names (`flags`, on Arm `Features`)."""
    return frozenset(processor_field("flags", "Features").split())
