"""The kernels of experts compile to machine code for GPUs of several generations, without a GPU."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

LEAST_SHARED_MEMORY = 99 * 1024
"""The shared memory of a thread block in bytes, of the cards that have least."""


@pytest.mark.parametrize(
    ("arguments", "num_kernels"),
    [([], 1), pytest.param(["--all"], 4 * 26, marks=pytest.mark.nightly)],
    ids=["some", "all"],
)
def test_kernels_compile(arguments, num_kernels, tmp_path):
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    environment.pop("TRITON_INTERPRET", None)
    module = "tests.models.backends.transformers.fused.compile_experts"
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    compiled = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(compiled) == num_kernels
    for kernel in compiled:
        assert kernel["shared"] <= LEAST_SHARED_MEMORY, kernel
        assert kernel["stack"] == 0, kernel
        if "product" in kernel["kernel"] and kernel["dtype"] != "torch.float32":
            assert kernel["tensor_cores"], kernel
