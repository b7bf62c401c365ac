"""Compiles Triton kernels for GPUs that need not be present, outside the interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SHARED_MEMORY = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}
"""The largest shared memory of a thread block in bytes, by compute capability."""


def without_interpreter(cache: Path, *folders: Path) -> dict[str, str]:
    """The environment of a process that compiles into `cache`. It also imports from `folders`."""
    path = os.pathsep.join([*map(str, folders), *(p for p in sys.path if p)])
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": path}
    environment.pop("TRITON_INTERPRET", None)
    return environment


def compiled_kernels(cache: Path, *words: str, folders: tuple[Path, ...] = ()) -> list[Any]:
    """What `python *words` prints of each kernel, one JSON value a line."""
    result = subprocess.run(
        [sys.executable, *words],
        env=without_interpreter(cache, *folders),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return [json.loads(line) for line in result.stdout.splitlines()]
