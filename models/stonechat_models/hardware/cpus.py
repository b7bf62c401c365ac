"""The processors that this process may run on. Imports no other module, so all may import it."""

import os


def usable_cpus() -> int:
    """Return how many logical processors this process may run on.

    Its CPU affinity decides, on systems that have one.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
