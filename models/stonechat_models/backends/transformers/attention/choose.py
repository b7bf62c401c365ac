"""Chooses an attention backend that the device supports and that passes its parity check there."""

import logging
from collections.abc import Callable
from importlib.util import find_spec

import torch

from stonechat_models.backends.transformers.attention.backend import AttentionBackend
from stonechat_models.backends.transformers.attention.batched import BatchedBackend
from stonechat_models.backends.transformers.attention.parity_check import ParityCheck
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from stonechat_models.errors import ModelLoadError

logger = logging.getLogger(__name__)

NAMES = ("auto", "triton", "batched", "sdpa")
LEAST_CAPABILITY = (8, 0)


def choose_attention(
    name: str,
    device: torch.device,
    parity_check: ParityCheck | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> AttentionBackend:
    """The backend called `name`, or with `auto` the first that works.

    On CUDA, `auto` tries Triton and PyTorch's own operators in this order. The first backend that
    can run and passes the parity check is used. On other devices it is `batched`.
    For each backend that fails, `progress` receives a line with the reason. Without a
    `parity_check` the results are not checked. Raises `ModelLoadError` for an unknown name, and for
    a named backend that cannot run or gives wrong results.
    """
    if name not in NAMES:
        raise ModelLoadError(f"{name!r} is not an attention backend; try {', '.join(NAMES)}")
    if name == "auto" and device.type != "cuda":
        return BatchedBackend()
    reasons = []
    for candidate in NAMES[1:] if name == "auto" else (name,):
        reason = _why_not(candidate, device)
        if reason is None:
            try:
                backend = _build(candidate, device)
                if parity_check is not None and device.type == "cuda":
                    parity_check.run(backend)
                return backend
            except Exception as error:  # after any error, another backend may work
                logger.warning("attention backend %s failed", candidate, exc_info=error)
                reason = _first_line(error)
                progress(f"not using {candidate} attention: {reason}")
        reasons.append(f"{candidate}: {reason}")
    if name != "auto":
        raise ModelLoadError(f"{name} attention does not work on {device}: {reason}")
    raise ModelLoadError(f"no attention backend works on {device}; {'; '.join(reasons)}")


def _first_line(error: Exception) -> str:
    """The first line of the error text. Compilers and drivers add pages."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _build(name: str, device: torch.device) -> AttentionBackend:
    if name == "sdpa":
        return SdpaBackend()
    if name == "batched":
        return BatchedBackend()
    from stonechat_models.backends.transformers.attention.triton_backend import TritonBackend

    return TritonBackend.for_device(device)


def _why_not(name: str, device: torch.device) -> str | None:
    return why_no_triton(device) if name == "triton" else None


def why_no_triton(device: torch.device) -> str | None:
    """Why the Triton kernels cannot be compiled or run on `device`, or None."""
    if device.type != "cuda":
        return f"it needs a CUDA device, not {device}"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        actual, needed = (".".join(map(str, c)) for c in (capability, LEAST_CAPABILITY))
        return f"the device has compute capability {actual}; the Triton kernels need {needed}"
    if find_spec("triton") is None:
        return "Triton is not installed"
    return None
