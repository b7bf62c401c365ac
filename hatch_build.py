"""Build hook: puts compiled CPU kernels into the wheel, so that users need no compiler.

    STONECHAT_KERNELS=x86_64 pip wheel --no-deps .

The variable names the machine (x86_64 or aarch64) and makes this a wheel for Linux on it. Without
the variable the wheel holds the sources alone, and the kernels are compiled on first use. `CXX`
names the compiler, otherwise it is g++.
"""

import os
import subprocess
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
        for level in levels["LEVELS"][machine]:
            library = root / "build" / "kernels" / levels["library_name"](machine, level)
            if not library.exists():
                self.app.display_info(f"compiling {library.name}")
                compile_library((*levels["FLAGS"], *level.flags), levels["SOURCES"], library)
            build_data["force_include"][str(library)] = f"{PACKAGE}/prebuilt/{library.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{machine}"


def compile_library(flags: tuple[str, ...], sources: Path, library: Path) -> None:
    """Compile a library. It gets its name when it is complete."""
    library.parent.mkdir(parents=True, exist_ok=True)
    unfinished = library.with_suffix(".part")
    source = str(sources / "api.cpp")
    compiler = os.environ.get("CXX") or "g++"
    command = [compiler, *flags, "-w", source, *LINK_FLAGS, "-o", str(unfinished)]
    subprocess.run(command, check=True)
    unfinished.rename(library)
