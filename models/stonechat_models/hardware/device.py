"""Chooses the device and dtype, and finds how many cores and how much memory may be used."""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stonechat_models.errors import ModelLoadError
from stonechat_models.hardware.gpu_files import may_have_gpu

if TYPE_CHECKING:
    import torch

CGROUP_V2 = Path("/sys/fs/cgroup")
CGROUP_V1 = Path("/sys/fs/cgroup/memory")
DTYPES = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "half": "float16",
    "float": "float32",
}
"""The names of dtypes, and those that PyTorch gives them."""


@dataclass(frozen=True, slots=True)
class HostDevice:
    """The CPU, for those who need no PyTorch: importing it takes most of a second and 180 MB."""

    type: str = "cpu"
    index: int | None = None

    def __str__(self) -> str:
        return self.type


def find_device(name: str) -> "torch.device | HostDevice":
    """Do as `choose_device`, without importing PyTorch if it would find nothing but the CPU."""
    if name == "cpu" or (name == "auto" and not may_have_gpu()):
        return HostDevice()
    return choose_device(name)


def as_torch(device: "torch.device | HostDevice") -> "torch.device":
    """Return the device as PyTorch's."""
    import torch

    return torch.device(device.type) if isinstance(device, HostDevice) else device


def choose_device(name: str) -> "torch.device":
    """Return the device of a name. `auto` is CUDA, else MPS, else the CPU.

    Raises `ModelLoadError` for a device that does not exist.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelLoadError(
            f"{name!r} is not a device; use auto, cpu, cuda, cuda:0 or mps"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelLoadError(
            f"there is no device {name} (CUDA devices: {torch.cuda.device_count()})"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelLoadError("there is no MPS device")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", 0)
    return device


def as_current_device(device: "torch.device") -> AbstractContextManager[object]:
    """Make a CUDA device the thread's current one; do nothing for another device.

    Triton compiles for the current device and launches there, even if the tensors are on another.
    """
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def choose_dtype(name: str, stored: str, device: "torch.device") -> "torch.dtype":
    """Return the dtype of a name. `auto` depends on the device and on the checkpoint.

    `stored` is the name of the checkpoint's dtype, or empty if it is not known.
    On a GPU `auto` is float16 for a float16 checkpoint. For any other it is bfloat16 where the GPU
    supports that, else float16. On a CPU it is bfloat16 for a bfloat16 checkpoint if the processor
    multiplies bfloat16 natively, else float32.

    Raises `ModelLoadError` for a name that is not a dtype.
    """
    import torch

    dtypes: dict[str, torch.dtype] = {key: getattr(torch, dtype) for key, dtype in DTYPES.items()}
    if name != "auto":
        if name not in dtypes:
            raise ModelLoadError(f"{name!r} is not a dtype; use auto, float32, float16 or bfloat16")
        return dtypes[name]
    stored_dtype = dtypes.get(stored)
    if device.type == "cpu":
        is_native = stored_dtype is torch.bfloat16 and cpu_has_bfloat16()
        return torch.bfloat16 if is_native else torch.float32
    if stored_dtype is torch.float16:
        return torch.float16
    has_bfloat16 = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if has_bfloat16 else torch.float16


def cpu_has_bfloat16() -> bool:
    """True if the processor has instructions that multiply bfloat16."""
    import torch

    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, lambda: False)()) for probe in probes)


def usable_cores() -> int:
    """Return how many cores this process may keep busy, within its affinity and its cgroup's CPU
    quota. Two hardware threads of one core count once."""
    cpus = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = set()
    for cpu in cpus:
        try:
            cores.add(Path(siblings.format(cpu)).read_text().strip())
        except OSError:
            cores.add(str(cpu))
    quota = cpu_quota()
    return len(cores) if quota is None else max(1, min(len(cores), int(quota)))


def cpu_quota() -> float | None:
    """Return the CPU quota of this process's tightest cgroup, in CPUs. None: no limit."""
    quotas = [_quota_of(folder) for folder in _cgroup_folders("cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return None if int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):  # "max": no limit
        return None


def total_memory(device: "torch.device | HostDevice") -> int:
    """Return a device's memory in bytes. On a CPU the limits of the cgroups apply too."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(as_torch(device)).total_memory)
    if device.type == "mps":
        import torch

        return int(torch.mps.recommended_max_memory())
    limits = [limit for limit, _ in _cgroup_memory()]
    return min([_physical_memory()[0], *limits])


def free_memory(device: "torch.device | HostDevice") -> int:
    """Return how many bytes a device has free. On a CPU the limits of the cgroups apply too."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(as_torch(device))[0])
    if device.type == "mps":
        import torch

        return total_memory(device) - int(torch.mps.driver_allocated_memory())
    limits = [limit - used for limit, used in _cgroup_memory()]
    return max(0, min([_physical_memory()[1], *limits]))


def _physical_memory() -> tuple[int, int]:
    """Return the total and the available memory of the machine, in bytes."""
    meminfo = _fields(Path("/proc/meminfo"))
    if "MemTotal" in meminfo:
        free = meminfo.get("MemAvailable", meminfo.get("MemFree", 0))
        return meminfo["MemTotal"] * 1024, free * 1024
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, total // 2 if sys.platform == "darwin" else total


def _cgroup_memory() -> list[tuple[int, int]]:
    """Return (limit, bytes in use) of each cgroup of this process that has a memory limit.

    File cache that the kernel can reclaim does not count as in use.
    """
    cgroups: list[tuple[int, int]] = []
    for folder in _cgroup_folders():
        v2 = folder / "memory.max"
        limit = _number(v2 if v2.exists() else folder / "memory.limit_in_bytes")
        used = _number(folder / ("memory.current" if v2.exists() else "memory.usage_in_bytes"))
        if limit is not None and used is not None:
            statistics = _fields(folder / "memory.stat")
            reclaimable = statistics.get("inactive_file", statistics.get("total_inactive_file", 0))
            cgroups.append((limit, max(0, used - reclaimable)))
    return cgroups


def _cgroup_folders(controller: str = "memory") -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUP_V1.with_name(controller) if controllers else CGROUP_V2
        here = root / path.lstrip("/")
        folders += [here, *(p for p in here.parents if p == root or root in p.parents)]
    return [folder for folder in folders if folder.is_dir()]


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < 1 << 60 else None


def _fields(path: Path) -> dict[str, int]:
    """Return the numbers in lines of the form `name number` or `name: number kB`, by name."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.replace(":", " ").split()[:2] for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
