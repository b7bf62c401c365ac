"""Finds what decides how models run on this machine: processors, memory, GPUs, libraries."""

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from stonechat_models.checkpoint.cache import Progress, cache_root
from stonechat_models.diagnostics.cpu_kernels import missing_instructions
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.hardware.cpus import cpu_name, processor_flags, usable_cpus

if TYPE_CHECKING:
    from stonechat_models.backends.native.bindings import Library
    from stonechat_models.diagnostics.gpu_support import GpuSupport

INSTRUCTION_SETS = (
    "avx2", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "bf16", "sve", "sve256",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that torch can use. Memory is in bytes."""

    name: str
    kind: str
    total_memory: int
    free_memory: int
    capability: str
    support: "GpuSupport | None" = None
    """How models run on it. None: it is no CUDA device."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts about the machine. Memory is in bytes. The version of an absent package is empty."""

    system: str
    cpu: str
    num_cpus: int
    usable_cpus: int
    num_cores: int
    """Physical cores among the usable processors."""
    cpu_quota: float | None
    """CPU time that the cgroup allows, in processors. None: no limit."""
    instruction_sets: tuple[str, ...]
    total_memory: int
    free_memory: int
    gpus: tuple[Gpu, ...]
    has_nvidia_driver: bool
    torch_version: str
    torch_cuda: str
    package_versions: dict[str, str]
    compiler: str | None
    native_isa: str | None
    """The instruction set that the compiled CPU path uses. None: the path cannot be used."""
    native_library: str | None
    """The file of the compiled CPU path: part of the package, or compiled into the cache."""
    native_refusal: str | None
    """Why the compiled CPU path cannot be used. None: it can."""
    missing_instructions: str | None
    """Why the compiled CPU path does not use the fastest instruction set. None: it does."""
    cache_folder: Path
    cache_free_bytes: int


def inspect_machine(progress: Progress) -> Machine:
    """Return the facts about this machine. Compiles the CPU kernels if they are not cached."""
    import torch

    from stonechat_models.backends.native.compile import find_compiler
    from stonechat_models.hardware.device import cpu_quota, free_memory, total_memory, usable_cores

    cpu = torch.device("cpu")
    library, refusal = _native(progress)
    isa = library.isa if library else None
    flags = processor_flags()
    instruction_sets = tuple(name for name in INSTRUCTION_SETS if name in flags)
    folder = cache_root()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        num_cpus=os.cpu_count() or 1,
        usable_cpus=usable_cpus(),
        num_cores=usable_cores(),
        cpu_quota=cpu_quota(),
        instruction_sets=instruction_sets,
        total_memory=total_memory(cpu),
        free_memory=free_memory(cpu),
        gpus=_gpus(),
        has_nvidia_driver=Path("/proc/driver/nvidia/version").exists(),
        torch_version=torch.__version__,
        torch_cuda=torch.version.cuda or "",
        package_versions={
            name: _version(name)
            for name in ("transformers", "tokenizers", "triton", "llguidance", "pillow", "uvloop")
        },
        compiler=find_compiler(),
        native_isa=isa,
        native_library=library.path if library else None,
        native_refusal=refusal,
        missing_instructions=missing_instructions(isa, instruction_sets) if isa else None,
        cache_folder=folder,
        cache_free_bytes=_free_bytes(folder),
    )


def _native(progress: Progress) -> "tuple[Library | None, str | None]":
    from stonechat_models.backends.native.bindings import load_library

    try:
        return load_library(progress), None
    except UnsupportedModelError as error:
        return None, str(error)


def _gpus() -> tuple[Gpu, ...]:
    import torch

    from stonechat_models.diagnostics.gpu_support import gpu_support
    from stonechat_models.hardware.device import free_memory, total_memory

    gpus = []
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        sizes = total_memory(device), free_memory(device)
        gpus.append(Gpu(name, "cuda", *sizes, f"{major}.{minor}", gpu_support(device)))
    if torch.backends.mps.is_available():
        device = torch.device("mps")
        gpus.append(Gpu("Apple GPU", "mps", total_memory(device), free_memory(device), ""))
    return tuple(gpus)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free
