"""What a GPU machine has: versions, the device, the host's processor, compilers. And a product."""

import hashlib
import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    *("torch", "triton", "transformers", "tokenizers", "numpy", "huggingface_hub", "torchao"),
    *("pytest", "pytest-xdist", "pytest-timeout", "typing_extensions", "pydantic", "fastapi"),
)
TOOLS = ("gcc", "cc", "clang", "nvcc", "ptxas", "ncu", "nsys")


def main() -> None:
    print(f"Python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} CPUs")
    print(_processor())
    print(", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    print(", ".join(f"{name} {shutil.which(name) or 'none'}" for name in TOOLS))
    _run("nvidia-smi")
    _run("df", "-h", "/tmp", "/dev/shm")
    _run("free", "-g")
    _timed("import torch", _torch)
    _timed("Triton's key", _triton)
    _timed("import the server", _server)
    _timed("import transformers", _transformers)


def _timed(what: str, function: object) -> None:
    started = time.perf_counter()
    try:
        result = function()  # type: ignore[operator]
    except Exception as error:
        result = f"FAILED: {type(error).__name__}: {error}"
    print(f"{what} ({time.perf_counter() - started:.1f} s): {result}", flush=True)


def _torch() -> str:
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device"
    device = torch.device("cuda", 0)
    free, total = torch.cuda.mem_get_info(device)
    a = torch.randn(512, 512, device=device, dtype=torch.bfloat16)
    error = float((a @ a - (a.float() @ a.float()).bfloat16()).abs().max())
    return (
        f"{torch.cuda.get_device_properties(device)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB "
        f"free, error of a product {error:.3g}, CUDA {torch.version.cuda}"
    )


def _triton() -> str:
    """Kernels compiled elsewhere are used if this is the same there."""
    from triton.runtime.cache import triton_key

    return hashlib.sha256(triton_key().encode()).hexdigest()[:16]


def _transformers() -> str:
    import transformers

    return str(transformers.__version__)


def _server() -> str:
    import stonechat_models.runtime.build
    import stonechat_server.app

    return f"{stonechat_server.app.__file__}, {stonechat_models.runtime.build.__file__}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _run(*command: str) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20)
        print(result.stdout.strip() or result.stderr.strip(), flush=True)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{command[0]}: {error}", flush=True)


if __name__ == "__main__":
    main()
