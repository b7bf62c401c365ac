"""The kernels of recurrent layers compile to machine code for GPUs of several generations."""

import pytest

from tests.models.compiled import SHARED_MEMORY, compiled_kernels

pytest.importorskip("triton")


@pytest.mark.nightly
def test_all_kernels_compile(tmp_path):
    module = "tests.models.backends.transformers.fused.compile_states"
    compiled = compiled_kernels(tmp_path, "-m", module)
    assert len(compiled) == 4 * 3 * 6
    check(compiled)


def check(compiled):
    for kernel in compiled:
        assert kernel["shared"] <= SHARED_MEMORY[kernel["capability"]], kernel
        assert kernel["stack"] == 0, kernel
        assert kernel["any_slot"], kernel
        assert kernel["waits"] is (kernel["capability"] >= 90), kernel
