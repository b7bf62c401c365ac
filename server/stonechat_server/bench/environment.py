"""Describes the machine that a result was measured on."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from stonechat_server.bench.results import Environment


def describe_environment() -> Environment:
    """Describe processor, memory, GPUs and versions; values that cannot be read are empty."""
    from stonechat_models import __version__, cpu_name, usable_cpus

    return Environment(
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        num_cpus=os.cpu_count() or 1,
        usable_cpus=usable_cpus(),
        memory_bytes=memory_bytes(),
        gpus=gpu_names(),
        python=platform.python_version(),
        stonechat=__version__,
    )


def busy_ticks() -> tuple[int, int] | None:
    """Clock ticks of all cores since the system started: the busy ones, and all.

    None where the system does not report them.
    """
    try:
        first_line = Path("/proc/stat").read_text().partition("\n")[0]
        fields = [int(field) for field in first_line.split()[1:9]]
    except (OSError, ValueError):
        return None
    if len(fields) < 5:
        return None
    idle = fields[3] + fields[4]
    return sum(fields) - idle, sum(fields)


def busy_share(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """The share of all cores that was busy between two values of `busy_ticks`."""
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def memory_bytes() -> int:
    """Bytes of physical memory; 0 if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs; empty without `nvidia-smi`."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (subprocess.SubprocessError, OSError):
        return []
    return [line.strip() for line in process.stdout.splitlines() if line.strip()]
