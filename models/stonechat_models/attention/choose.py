"""Chooses the attention backend by what the device can do."""

from importlib.util import find_spec

import torch

from stonechat_models.attention.backend import AttentionBackend
from stonechat_models.attention.batched import BatchedBackend
from stonechat_models.attention.sdpa import SdpaBackend
from stonechat_models.errors import ModelLoadError

NAMES = ("auto", "triton", "batched", "sdpa")
LEAST_CAPABILITY = (8, 0)


def choose_attention(name: str, device: torch.device) -> AttentionBackend:
    """`auto`: Triton on CUDA from compute capability 8.0 on, else PyTorch's own operators.

    Raises `ModelLoadError` for a name that is none, or a backend that cannot run here.
    """
    if name not in NAMES:
        raise ModelLoadError(f"{name!r} is no attention backend; try {', '.join(NAMES)}")
    if name == "sdpa":
        return SdpaBackend()
    reason = why_no_triton(device)
    if name == "triton" and reason is not None:
        raise ModelLoadError(f"the Triton attention backend cannot run: {reason}")
    if name == "batched" or reason is not None:
        return BatchedBackend()
    from stonechat_models.attention.triton_backend import TritonBackend

    return TritonBackend.for_device(device)


def why_no_triton(device: torch.device) -> str | None:
    """None where the Triton kernels can be compiled and run."""
    if device.type != "cuda":
        return f"it needs a CUDA device, not {device}"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        found, needed = (".".join(map(str, c)) for c in (capability, LEAST_CAPABILITY))
        return f"the device has compute capability {found}, and it needs {needed}"
    if find_spec("triton") is None:
        return "Triton is not installed"
    return None
