"""Says how models run on a CUDA device. Nothing is compiled or run on it.

What the device supports is asked of the code that loads models.
"""

import os
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from stonechat_models.backends.quantization.device_support import (
    refuse_kv_format,
    refuse_weight_format,
)
from stonechat_models.backends.transformers.attention.choose import why_no_triton
from stonechat_models.config import EngineConfig, Precision
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.hardware.device import choose_dtype

KV_FP8 = "fp8 KV cache"


@dataclass(frozen=True, slots=True)
class GpuSupport:
    """What the default settings use on a CUDA device. A reason is None if there is none."""

    dtype: str
    """The dtype for any checkpoint but one in float16."""
    attention: str
    """The attention backend that is tried first. Another is used if it fails its parity check."""
    triton_refusal: str | None
    """Why the Triton kernels cannot run. Without them, no modules or experts are fused, and no
    CUDA graphs are captured."""
    torch_refusal: str | None
    """Why the installed torch has no code for the device."""
    precision_refusals: dict[str, str | None]
    """Why weights cannot be int8, int4 or fp8, and why the KV cache cannot be fp8."""


def gpu_support(device: torch.device) -> GpuSupport:
    """Return what `device` supports."""
    refusal = why_no_triton(device) or why_no_launcher()
    attention = "triton" if refusal is None else "batched"
    refusals = {
        name: _refusal(refuse_weight_format, EngineConfig(model="", quantize=name), device)
        for name in get_args(Precision)
    }
    return GpuSupport(
        dtype=str(choose_dtype("auto", "", device)).removeprefix("torch."),
        attention=attention,
        triton_refusal=refusal,
        torch_refusal=why_no_code(
            torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
        ),
        precision_refusals=refusals
        | {KV_FP8: _refusal(refuse_kv_format, "fp8", attention, device)},
    )


def why_no_launcher() -> str | None:
    """Why Triton cannot compile the small C function that launches a kernel, or None."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler, gcc or clang"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Triton needs the headers of Python (on Debian: apt-get install python3-dev)"
    return None


def why_no_code(capability: tuple[int, int], architectures: Sequence[str]) -> str | None:
    """Why a build of torch cannot run on a device, or None.

    `architectures`: what the build has, such as `sm_80`, which runs on all later devices of its
    generation, or `compute_90`, which is compiled for any later device at run time.
    """
    for name in architectures:
        kind, _, number = name.partition("_")
        digits = "".join(c for c in number if c.isdigit())
        built_for = int(digits[:-1] or 0), int(digits[-1:] or 0)
        if built_for <= capability and (kind == "compute" or built_for[0] == capability[0]):
            return None
    if not architectures:
        return None
    return f"the installed torch has code for {', '.join(architectures)} only"


def _refusal(refuse: Callable[..., None], *arguments: object) -> str | None:
    """Return why `refuse` raises, or None."""
    try:
        refuse(*arguments)
    except UnsupportedModelError as error:
        return str(error)
    return None
