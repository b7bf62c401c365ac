"""The processors this process may run on; imports nothing, so that anyone may ask."""

import os


def usable_cpus() -> int:
    """Logical processors this process may run on, by its affinity where there is such a thing."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
