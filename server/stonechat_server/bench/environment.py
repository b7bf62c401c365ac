"""Describes the machine that a result was measured on."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from stonechat_server.bench.results import Environment


def describe_environment() -> Environment:
    """Describe processor, memory, GPUs and versions; values that cannot be read are empty."""
    from stonechat_models import __version__, usable_cpus

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


def cpu_name() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


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
