"""Which precisions the configuration requests, and whether a device supports them."""

from importlib.util import find_spec

import torch

from stonechat_models.config import EngineConfig, KvCacheDtype, Precision
from stonechat_models.errors import UnsupportedModelError

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
LEAST_PEAK = 1e-10
"""Lower bound of a row's largest value: with a scale of 0, a row of zeros would become 0 / 0."""
LEAST_CAPABILITY: dict[Precision, tuple[int, int]] = {"int8": (0, 0), "int4": (8, 0), "fp8": (8, 9)}
"""Lowest CUDA compute capability for each precision."""
FP8_KV_CAPABILITY = (8, 9)
"""Lowest CUDA compute capability for which Triton converts float8."""
FP8_KV_BACKENDS = frozenset({"sdpa", "batched", "row", "triton"})


def precision_of(config: EngineConfig) -> Precision | None:
    """Return the precision to quantise weights to; None for `auto` and `none`."""
    return None if config.quantize == "auto" or config.quantize == "none" else config.quantize


def refuse_weight_format(config: EngineConfig, device: torch.device) -> None:
    """Refuse, before loading, a precision that the device does not support.

    Raises `UnsupportedModelError` with the reason.
    """
    precision = precision_of(config)
    if precision is None:
        return
    if precision == "fp8" and device.type != "cuda":
        raise UnsupportedModelError(
            f"fp8 weights need a CUDA device of compute capability 8.9 or more, not {device}"
        )
    if device.type == "cpu":
        return
    if config.deterministic:
        raise UnsupportedModelError(
            f"quantised weights on {device} are not multiplied in one fixed order "
            "(--quantize with --deterministic works only on the CPU)"
        )
    if device.type == "cuda":
        _refuse_on_cuda(precision, device)
    elif precision != "int8":
        raise UnsupportedModelError(f"{precision} weights are not supported on {device}: try int8")


def _refuse_on_cuda(precision: Precision, device: torch.device) -> None:
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY[precision]:
        actual, needed = (_dotted(c) for c in (capability, LEAST_CAPABILITY[precision]))
        raise UnsupportedModelError(
            f"{precision} weights need compute capability {needed}, and {device} has {actual}: "
            "try int8"
        )
    package = "triton" if precision == "fp8" else "torchao"
    if find_spec(package) is None:
        raise UnsupportedModelError(
            f"{precision} weights on a GPU need {package}: pip install 'stonechat[gpu]'"
        )


def kv_dtype(requested: KvCacheDtype, activations: torch.dtype) -> torch.dtype:
    """Return the dtype of cached keys and values; `auto` means that of the activations."""
    return {"auto": activations, "bfloat16": torch.bfloat16, "fp8": FP8}[requested]


def refuse_kv_format(requested: KvCacheDtype, backend: str, device: torch.device) -> None:
    """Raise `UnsupportedModelError` for a KV cache that the attention backend cannot read."""
    if requested == "int8":
        raise UnsupportedModelError("only the compiled CPU kernels keep an int8 KV cache")
    if requested != "fp8":
        return
    if backend not in FP8_KV_BACKENDS:
        raise UnsupportedModelError(f"the {backend} attention backend cannot read an fp8 KV cache")
    if backend == "triton" and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < FP8_KV_CAPABILITY:
            raise UnsupportedModelError(
                f"the Triton kernels read an fp8 KV cache from compute capability "
                f"{_dotted(FP8_KV_CAPABILITY)} on, and {device} has {_dotted(capability)} "
                "(--attention-backend batched reads it on any device)"
            )


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
