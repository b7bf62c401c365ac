"""Whether PyTorch will find a GPU, told from files: importing PyTorch takes seconds."""

import os
import sys
from importlib import metadata
from pathlib import Path

DEVICES = Path("/dev")
PATTERNS = ("nvidia[0-9]*", "dxg")
"""The devices of the drivers for Linux and for Windows' Linux."""
AMD_DEVICE = "kfd"


def may_have_gpu() -> bool:
    """Return whether PyTorch may find a GPU of any make. Only PyTorch can tell on macOS."""
    if not sys.platform.startswith("linux"):
        return True
    try:
        is_for_cpus = metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False
    return sees_gpu() or (not is_for_cpus and (DEVICES / AMD_DEVICE).exists())


def sees_gpu() -> bool:
    """Return whether this process may use an NVIDIA GPU. If False, PyTorch may still find one."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    try:
        if metadata.version("torch").endswith("+cpu"):
            return False
    except metadata.PackageNotFoundError:
        return False
    return any(any(DEVICES.glob(pattern)) for pattern in PATTERNS)
