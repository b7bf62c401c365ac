"""The kernels of experts compile to machine code for GPUs of several generations, without a GPU."""

import pytest

from tests.models.compiled import compiled_kernels

pytest.importorskip("triton")

LEAST_SHARED_MEMORY = 99 * 1024
"""The shared memory of a thread block in bytes, of the cards that have least."""


@pytest.mark.nightly
def test_all_kernels_compile(tmp_path):
    module = "tests.models.backends.transformers.fused.compile_experts"
    compiled = compiled_kernels(tmp_path, "-m", module)
    assert len(compiled) == 4 * 29
    check(compiled)


def check(compiled):
    for kernel in compiled:
        assert kernel["shared"] <= LEAST_SHARED_MEMORY, kernel
        assert kernel["stack"] == 0, kernel
        if "product" in kernel["kernel"] and kernel["dtype"] != "torch.float32":
            assert kernel["tensor_cores"], kernel
