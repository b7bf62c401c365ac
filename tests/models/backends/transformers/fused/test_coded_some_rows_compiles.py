"""The product for some rows with codes compiles to machine code, without spilling."""

from pathlib import Path

import pytest

from tests.models.compiled import SHARED_MEMORY, compiled_kernels

pytest.importorskip("triton")
MODULE = "tests.models.backends.transformers.fused.compile_coded_some_rows"
SCRIPTS = Path(__file__).parents[5] / "scripts/gpu"
MAX_STACK = 16


@pytest.mark.nightly
@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_all_kernels_compile(capability, tmp_path):
    words = ("-m", MODULE, str(capability), "--all")
    check(compiled_kernels(tmp_path, *words, folders=(SCRIPTS,)))


def check(compiled):
    """All is copied ahead, and no weight moves from lane to lane: at most scales of NVFP4 do."""
    assert compiled
    for row in compiled:
        assert row["tensor_cores"], row
        assert row["stack"] <= MAX_STACK, row
        assert row["shared"] <= SHARED_MEMORY[row["capability"]], row
        assert row["plain_loads"] == 0, row
        assert row["moves"] <= (3 if row["type"] == "NVFP4" else 0), row
