"""The kernels for codes compile to machine code, without spilling and within shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nightly import nightly

pytest.importorskip("triton")
SCRIPT = Path(__file__).with_name("compile_code_kernels.py")
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
"""Bytes of shared memory that a program may have, by compute capability."""
MAX_STACK = 24


@pytest.mark.parametrize("words", [["90"], *nightly(["80,89,90,120", "--all"])])
def test_kernels_compile(words, tmp_path):
    path = os.pathsep.join([*filter(None, sys.path), str(SCRIPT.parents[4] / "scripts/gpu")])
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": path}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    compiled = [json.loads(line) for line in result.stdout.splitlines()]
    assert {row["kernel"] for row in compiled} == {"rows_kernel", "dequantise_kernel"}
    for row in compiled:
        assert row["stack"] <= MAX_STACK, row
        assert row["shared"] <= SHARED[row["capability"]], row
        assert row["integers"] == (row["kernel"] == "rows_kernel"), row
