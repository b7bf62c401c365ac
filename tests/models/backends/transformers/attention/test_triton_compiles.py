"""The Triton kernels compile to machine code for GPUs of several generations, without a GPU."""

import pytest

from tests.models.compiled import SHARED_MEMORY, compiled_kernels

pytest.importorskip("triton")

MATRIX_KERNELS = {"decode_kernel", "prefill_kernel", "some_rows_kernel"}
FUSED_KERNELS = {
    "rms_norm_kernel",
    "gated_kernel",
    "rope_and_store_kernel",
    "few_rows_kernel",
    "few_rows_qkv_kernel",
    "some_rows_kernel",
}


@pytest.mark.nightly
def test_all_kernels_compile(tmp_path):
    module = "tests.models.backends.transformers.attention.compile_kernels"
    compiled = compiled_kernels(tmp_path, "-m", module)
    assert len(compiled) == 9 * 4 + 4 * 19 + 2 + 2 * (12 + 6)
    check(compiled)


def check(compiled):
    for kernel in compiled:
        assert kernel["cubin_bytes"] > 0
        assert kernel["shared"] <= SHARED_MEMORY[kernel["capability"]], kernel
        assert ("float8" in kernel["kv_dtype"]) == kernel["converts_fp8"], kernel
        if kernel["kernel"] in FUSED_KERNELS:
            most = 8 if kernel["kernel"] == "some_rows_kernel" else 0  # two registers
            assert kernel["stack"] <= most, kernel
        if kernel["kernel"] in FUSED_KERNELS | {"decode_kernel"}:
            assert kernel["waits"] is (kernel["capability"] >= 90), kernel
        if kernel["kernel"] == "decode_kernel":
            assert kernel["fetches"] is kernel["waits"], kernel
        if kernel["kernel"] in MATRIX_KERNELS and kernel["dtype"] != "torch.float32":
            assert kernel["tensor_cores"], kernel
