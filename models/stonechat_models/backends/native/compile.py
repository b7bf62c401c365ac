"""Compiles the library in `csrc/` on first use and keeps it in the user's cache.

The name of its cache folder is a hash of the sources, the flags, the compiler and the processor.
A change to any of them therefore causes a new compilation.
"""

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

from stonechat_models.backends.native.levels import FLAGS, SOURCES, SVE_LENGTH, add_sources
from stonechat_models.checkpoint.cache import Progress, cache_root, fill_once
from stonechat_models.errors import UnsupportedModelError

COMPILERS = ("g++", "c++", "clang++")
COMPILE_TIMEOUT = 300.0
LIBRARY_NAME = "stonechat_native.so"


def find_compiler() -> str | None:
    """Return the path of the C++ compiler: `$CXX`, or else the first usual name that exists.

    Returns None if there is no such program.
    """
    cxx = os.environ.get("CXX")
    candidates = (cxx,) if cxx else COMPILERS
    return next((path for name in candidates if (path := shutil.which(name))), None)


def build_library(progress: Progress, target: tuple[str, ...] = ()) -> Path:
    """Return the path of the library for a target; compile it if it is not cached.

    `target` tells the compiler the instructions that it may use: see `target_flags`. Raises
    `UnsupportedModelError` with the reason if the library cannot be built.
    """
    compiler = find_compiler()
    if compiler is None:
        raise UnsupportedModelError("there is no C++ compiler (install g++ or clang++)")
    flags = (*FLAGS, *target)
    key = _fingerprint(compiler, flags)
    folder = cache_root() / "native" / key[:24]

    def compile_into(target: Path) -> None:
        progress("compiling the CPU kernels (once, up to a minute or two)")
        _compile(compiler, flags, target / LIBRARY_NAME)

    return fill_once(folder, progress, compile_into) / LIBRARY_NAME


def target_flags(
    architecture: str, machine: str, instruction_sets: Collection[str]
) -> tuple[str, ...]:
    """Return the compiler's flags for an architecture, which is a value of `-march`.

    `native` is the processor of this machine (`platform.machine()`), which has these instruction
    sets. On Arm it is a value of `-mcpu`: clang before 15 has no `-march=native` there. The
    compiler does not look up the length of SVE vectors.
    """
    if architecture != "native" or machine.lower() not in ("aarch64", "arm64"):
        return (f"-march={architecture}",)
    return ("-mcpu=native", SVE_LENGTH) if "sve256" in instruction_sets else ("-mcpu=native",)


def _compile(compiler: str, flags: tuple[str, ...], output: Path) -> None:
    command = [compiler, *flags, str(SOURCES / "api.cpp"), "-o", str(output)]
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMPILE_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnsupportedModelError(f"the C++ compiler fails: {error}") from error
    if result.returncode:
        message = next(
            (line for line in result.stderr.splitlines() if "error:" in line), "no message"
        )
        raise UnsupportedModelError(f"the C++ compiler fails: {message.strip()}")


def _fingerprint(compiler: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256("\0".join((compiler, *flags)).encode())
    add_sources(digest, SOURCES)
    digest.update(_compiler_identity(compiler).encode())
    digest.update(_processor().encode())
    return digest.hexdigest()


def _compiler_identity(compiler: str) -> str:
    """Path, size and modification time of the binary; to run it for its version takes longer."""
    resolved = Path(compiler).resolve()
    status = resolved.stat()
    return f"{resolved} {status.st_size} {status.st_mtime_ns}"


def _processor() -> str:
    """Model and instruction sets of the processor, as far as the system reports them."""
    on_x86 = ("model name", "flags", "cpu family", "model", "stepping")
    on_arm = ("features", "cpu implementer", "cpu part")
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    properties = [line for line in lines if line.split(":")[0].strip().lower() in on_x86 + on_arm]
    return platform.machine() + "\n".join(properties)
