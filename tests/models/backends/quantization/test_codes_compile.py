"""The kernels for codes compile to machine code, without spilling and within shared memory."""

from pathlib import Path

import pytest

from tests.models.compiled import SHARED_MEMORY, compiled_kernels

pytest.importorskip("triton")
MODULE = "tests.models.backends.quantization.compile_code_kernels"
SCRIPTS = Path(__file__).parents[4] / "scripts/gpu"
MAX_STACK = 16


@pytest.mark.nightly
@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_all_kernels_compile(capability, tmp_path):
    words = ("-m", MODULE, str(capability), "--all")
    check(compiled_kernels(tmp_path, *words, folders=(SCRIPTS,)), capability)


def check(compiled, capability):
    assert {row["kernel"] for row in compiled} == {"rows_kernel", "dequantise_kernel"}
    for row in compiled:
        assert row["stack"] <= MAX_STACK, row
        assert row["capability"] == capability
        assert row["shared"] <= SHARED_MEMORY[row["capability"]], row
        has_floats = row["type"].startswith("FP8") or row["kernel"] != "rows_kernel"
        assert row["integers"] is not has_floats, row
