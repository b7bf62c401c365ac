"""How many cores a server and its engine's process keep busy, for `bench.py`."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

INTERVAL = 0.25
"""Seconds between samples."""
WINDOW = 4
"""Intervals in which the busiest time is looked for."""
ENGINE = "worker_main"
"""In the command of an engine's process."""


@contextlib.contextmanager
def busiest_cores(pid: int) -> Iterator[dict[str, float]]:
    """Watch a server. At the end the dictionary has the cores of its busiest second.

    The keys are `server` and, if the engine has a process of its own, `engine`.
    """
    cores: dict[str, float] = {}
    engine = _engine_of(pid)
    pids = {"server": pid} | ({} if engine is None else {"engine": engine})
    samples: dict[str, list[float]] = {name: [] for name in pids}
    is_over = threading.Event()

    def watch() -> None:
        with contextlib.suppress(OSError):  # a process has ended
            is_last = False
            while not is_last:
                for name, number in pids.items():
                    samples[name].append(_cpu_seconds(number))
                is_last = is_over.wait(INTERVAL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield cores
    finally:
        is_over.set()
        thread.join()
        cores |= {name: busiest(times) for name, times in samples.items()}


def busiest(times: list[float]) -> float:
    """The largest increase in a window, or in all of a shorter time, per second.

    `times` are sampled at each interval.
    """
    window = max(1, min(WINDOW, len(times) - 1))
    pairs = zip(times, times[window:], strict=False)
    return max((last - first for first, last in pairs), default=0.0) / (window * INTERVAL)


def _engine_of(pid: int) -> int | None:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_child = int(_stat(int(folder.name))[1]) == pid
            if is_child and ENGINE in (folder / "cmdline").read_text():
                return int(folder.name)
    return None


def _cpu_seconds(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
