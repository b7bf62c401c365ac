"""A few Triton kernels of each kind compile to machine code, without a GPU.

The tests that compile all of a kind are nightly. They say what is checked of each kernel.
"""

from pathlib import Path

import pytest

pytest.importorskip("triton")
from tests.models.backends.quantization import test_codes_compile, test_fp8_linear
from tests.models.backends.transformers.attention import test_triton_compiles
from tests.models.backends.transformers.fused import (
    test_coded_some_rows_compiles,
    test_experts_compile,
    test_states_compile,
)
from tests.models.compiled import compiled_kernels
from tests.models.sampling.triton import test_sampler_compiles

SCRIPTS = Path(__file__).parents[2] / "scripts" / "gpu"


@pytest.mark.slow
def test_kernels_compile(tmp_path: Path) -> None:
    """One process imports what all of them need."""
    words = ("-m", "tests.models.compile_some")
    kinds = dict(compiled_kernels(tmp_path, *words, folders=(SCRIPTS,)))
    counts = {kind: len(kernels) for kind, kernels in kinds.items()}
    several = {kind: counts.pop(kind) for kind in ("codes", "rows of codes")}
    assert counts == {"attention": 2, "experts": 1, "states": 1, "sampler": 2, "float8": 1}
    assert all(several.values())
    test_triton_compiles.check(kinds["attention"])
    test_experts_compile.check(kinds["experts"])
    test_states_compile.check(kinds["states"])
    test_sampler_compiles.check(kinds["sampler"])
    test_fp8_linear.check(kinds["float8"])
    test_codes_compile.check(kinds["codes"], 90)
    test_coded_some_rows_compiles.check(kinds["rows of codes"])
