"""Chooses the attention backend: what the device can do, and what a parity_check there shows."""

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

NAMES = ("auto", "flashinfer", "triton", "batched", "sdpa")
LEAST_CAPABILITY = (8, 0)


def choose_attention(
    name: str,
    device: torch.device,
    parity_check: ParityCheck | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> AttentionBackend:
    """`auto`: on CUDA the first that can run and passes the parity check, of FlashInfer where it
    is installed, Triton, and PyTorch's own operators; `batched` on other devices.

    `progress` receives a line for each backend that `auto` passes over, with the reason. Without a
    `parity_check` the results are not checked. Raises `ModelLoadError` for an unknown name, and for
    a backend that cannot run here or gives wrong results here.
    """
    if name not in NAMES:
        raise ModelLoadError(f"{name!r} is no attention backend; try {', '.join(NAMES)}")
    if name != "auto":
        return _insist(name, device, parity_check)
    if device.type != "cuda":
        return BatchedBackend()
    reasons = []
    for candidate in NAMES[1:]:
        reason = _why_not(candidate, device)
        if reason is None:
            try:
                return _tried(candidate, device, parity_check)
            except Exception as error:  # whatever it raises, another one may serve
                logger.warning("attention backend %s failed", candidate, exc_info=error)
                reason = _told(error)
                progress(f"not using {candidate} attention: {reason}")
        reasons.append(f"{candidate}: {reason}")
    raise ModelLoadError(f"no attention backend works on {device}; {'; '.join(reasons)}")


def _insist(name: str, device: torch.device, parity_check: ParityCheck | None) -> AttentionBackend:
    reason = _why_not(name, device)
    if reason is not None:
        raise ModelLoadError(f"the {name} attention backend cannot run: {reason}")
    try:
        return _tried(name, device, parity_check if device.type == "cuda" else None)
    except Exception as error:
        raise ModelLoadError(
            f"the {name} attention backend fails on {device}: {_told(error)}"
        ) from error


def _tried(name: str, device: torch.device, parity_check: ParityCheck | None) -> AttentionBackend:
    backend = _build(name, device)
    if parity_check is not None:
        parity_check.run(backend)
    return backend


def _told(error: Exception) -> str:
    """The first line: compilers and drivers add pages."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _build(name: str, device: torch.device) -> AttentionBackend:
    if name == "sdpa":
        return SdpaBackend()
    if name == "batched":
        return BatchedBackend()
    from stonechat_models.backends.transformers.attention.triton_backend import TritonBackend

    triton = TritonBackend.for_device(device)
    if name == "triton":
        return triton
    from stonechat_models.backends.transformers.attention.flashinfer_backend import (
        FlashInferBackend,
    )

    return FlashInferBackend.for_device(device, triton)


def _why_not(name: str, device: torch.device) -> str | None:
    if name == "flashinfer":
        return why_no_flashinfer(device)
    return why_no_triton(device) if name == "triton" else None


def why_no_flashinfer(device: torch.device) -> str | None:
    """None where FlashInfer is installed and can run; it goes together with the Triton kernels."""
    if find_spec("flashinfer") is None:
        return "FlashInfer is not installed"
    return why_no_triton(device)


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
