"""The kernels of recurrent layers compile to machine code for GPUs of several generations."""

import pytest

from tests.models.compiled import SHARED_MEMORY, compiled_kernels

pytest.importorskip("triton")


TILED = ("delta_solve_kernel", "delta_scan_kernel", "scores_kernel", "mamba_scan_kernel")
"""Their exact products of float32 numbers take more registers than there are."""
FEW_BYTES = 64
"""What a thread of these may spill for half precision."""


@pytest.mark.nightly
def test_all_kernels_compile(tmp_path):
    module = "tests.models.backends.transformers.fused.compile_states"
    compiled = compiled_kernels(tmp_path, "-m", module)
    assert len(compiled) == 4 * 3 * 17
    check(compiled)


def check(compiled):
    for kernel in compiled:
        assert kernel["shared"] <= SHARED_MEMORY[kernel["capability"]], kernel
        is_allowed = kernel["dtype"] == "torch.float32" or kernel["stack"] <= FEW_BYTES
        may_spill = is_allowed and kernel["kernel"] in TILED
        assert kernel["stack"] == 0 or may_spill, kernel
        assert kernel["any_slot"], kernel
        assert kernel["waits"] is (kernel["capability"] >= 90), kernel
