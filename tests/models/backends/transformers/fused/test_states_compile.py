"""The kernels of recurrent layers compile to machine code for GPUs of several generations."""

import pytest

from tests.models.compiled import SHARED_MEMORY, compiled_kernels

pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("arguments", "num_kernels"),
    [([], 1), pytest.param(["--all"], 4 * 3 * 6, marks=pytest.mark.nightly)],
    ids=["some", "all"],
)
def test_kernels_compile(arguments, num_kernels, tmp_path):
    module = "tests.models.backends.transformers.fused.compile_states"
    compiled = compiled_kernels(tmp_path, "-m", module, *arguments)
    assert len(compiled) == num_kernels
    for kernel in compiled:
        assert kernel["shared"] <= SHARED_MEMORY[kernel["capability"]], kernel
        assert kernel["stack"] == 0, kernel
        assert kernel["any_slot"], kernel
        assert kernel["waits"] is (kernel["capability"] >= 90), kernel
