"""Build hook: puts compiled CPU kernels into the wheel, so that users need no compiler.

    STONECHAT_KERNELS=x86_64 pip wheel --no-deps .

The variable names the machine (x86_64 or aarch64) and makes this a wheel for Linux on it. Without
the variable the wheel holds the sources alone, and the kernels are compiled on first use. `CXX`
names the compiler, otherwise it is g++.
"""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from runpy import run_path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "stonechat_models/backends/native"
LINK_FLAGS = ("-static-libstdc++", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections", "-s")
"""The C++ library is part of each library, because users may have an older one."""


class KernelsHook(BuildHookInterface[Any]):
    """Compiles one library for each level of the machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        machine = os.environ.get("STONECHAT_KERNELS")
        if not machine or version == "editable":
            return
        root = Path(self.root)
        levels = run_path(str(root / "models" / PACKAGE / "levels.py"))
        if machine not in levels["LEVELS"]:
            raise SystemExit(f"STONECHAT_KERNELS must be one of {', '.join(levels['LEVELS'])}")
        folder = root / "build" / "kernels"
        libraries = {
            folder / levels["library_name"](machine, level): (*levels["FLAGS"], *level.flags)
            for level in levels["LEVELS"][machine]
        }
        for library in libraries:
            build_data["force_include"][str(library)] = f"{PACKAGE}/prebuilt/{library.name}"
        missing = [library for library in libraries if not library.exists()]
        self.app.display_info(f"compiling {len(missing)} libraries for {machine}")
        folder.mkdir(parents=True, exist_ok=True)
        source = levels["SOURCES"] / "api.cpp"
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [pool.submit(compile_library, libraries[path], source, path) for path in missing]
        for job in jobs:
            job.result()  # raises what the compilation raised
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{machine}"


def compile_library(flags: tuple[str, ...], source: Path, library: Path) -> None:
    """Compile a library. It gets its name when it is complete."""
    unfinished = library.with_suffix(".part")
    compiler = os.environ.get("CXX") or "g++"
    command = [compiler, *flags, "-w", str(source), *LINK_FLAGS, "-o", str(unfinished)]
    subprocess.run(command, check=True)
    unfinished.rename(library)
