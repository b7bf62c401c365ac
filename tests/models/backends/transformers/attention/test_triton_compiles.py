"""The Triton kernels compile to machine code for GPUs of several generations, without a GPU."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

MATRIX_KERNELS = {"decode_kernel", "prefill_kernel"}
FUSED_KERNELS = {
    "rms_norm_kernel",
    "gated_kernel",
    "rope_and_store_kernel",
    "few_rows_kernel",
    "few_rows_qkv_kernel",
}
SHARED_MEMORY = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}
"""The largest shared memory of a thread block in bytes, by compute capability."""


@pytest.mark.parametrize(
    ("arguments", "num_kernels"),
    [
        ([], 1),
        pytest.param(["--all"], 9 * 3 + 4 * 19 + 2, marks=pytest.mark.nightly),
    ],
    ids=["some", "all"],
)
def test_kernels_compile(arguments, num_kernels, tmp_path):
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    environment.pop("TRITON_INTERPRET", None)
    module = "tests.models.backends.transformers.attention.compile_kernels"
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    compiled = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(compiled) == num_kernels
    for kernel in compiled:
        assert kernel["cubin_bytes"] > 0
        assert kernel["shared"] <= SHARED_MEMORY[kernel["capability"]], kernel
        assert ("float8" in kernel["kv_dtype"]) == kernel["converts_fp8"], kernel
        if kernel["kernel"] in FUSED_KERNELS:
            assert kernel["stack"] == 0, kernel
            assert kernel["waits"] is (kernel["capability"] >= 90), kernel
        if kernel["kernel"] in MATRIX_KERNELS and kernel["dtype"] != "torch.float32":
            assert kernel["tensor_cores"], kernel
