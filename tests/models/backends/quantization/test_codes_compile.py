"""The kernels for codes compile to machine code, without spilling and within shared memory."""

from pathlib import Path

import pytest

from tests.models.compiled import SHARED_MEMORY, compiled_kernels
from tests.nightly import nightly

pytest.importorskip("triton")
MODULE = "tests.models.backends.quantization.compile_code_kernels"
SCRIPTS = Path(__file__).parents[4] / "scripts/gpu"
MAX_STACK = 16


ALL = [[str(capability), "--all"] for capability in SHARED_MEMORY]


@pytest.mark.parametrize("words", [["90"], *nightly(*ALL)])
def test_kernels_compile(words, tmp_path):
    compiled = compiled_kernels(tmp_path, "-m", MODULE, *words, folders=(SCRIPTS,))
    assert {row["kernel"] for row in compiled} == {"rows_kernel", "dequantise_kernel"}
    for row in compiled:
        assert row["stack"] <= MAX_STACK, row
        assert row["capability"] == int(words[0])
        assert row["shared"] <= SHARED_MEMORY[row["capability"]], row
        has_floats = row["type"].startswith("FP8") or row["kernel"] != "rows_kernel"
        assert row["integers"] is not has_floats, row
