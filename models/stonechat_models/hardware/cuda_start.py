"""Starts the CUDA driver while PyTorch is imported. Either may take a second or more."""

import ctypes
import os
import threading

from stonechat_models.hardware.gpu_files import sees_gpu

LIBRARY = "libcuda.so.1"


def start_driver(device: str) -> threading.Thread | None:
    """Let a thread create the context of a CUDA device that PyTorch will use.

    `device` is a name as `choose_device` takes it. Returns None if it can be no CUDA device. Errors
    are left to PyTorch, which meets them again.
    """
    kind, _, index = device.partition(":")
    index = index or "0"
    if kind not in ("auto", "cuda") or not index.isdigit() or not sees_gpu():
        return None
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # as PyTorch sets it
    thread = threading.Thread(target=_retain_context, args=(int(index),), daemon=True)
    thread.start()
    return thread


def _retain_context(index: int) -> None:
    """Create the primary context of a device. It lives as long as the process."""
    try:
        driver = ctypes.CDLL(LIBRARY)  # its calls run without Python's lock
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), index) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
