"""Whether PyTorch will find a GPU, told from files: importing PyTorch takes seconds."""

import os
from importlib import metadata
from pathlib import Path

DEVICES = Path("/dev")
PATTERNS = ("nvidia[0-9]*", "dxg")
"""The devices of the drivers for Linux and for Windows' Linux."""


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
