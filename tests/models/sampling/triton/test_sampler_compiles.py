"""The sampler's Triton kernels compile to machine code for several GPUs, without a GPU."""

from pathlib import Path
from typing import Any

import pytest

from tests.models.compiled import compiled_kernels

pytest.importorskip("triton")

NUM_KERNELS = 9 + 6
"""Six of them are compiled for bfloat16 too."""
SHARED_MEMORY = 48 * 1024
"""Bytes that every GPU has for a thread block."""


@pytest.mark.nightly
def test_all_kernels_compile_without_spills(tmp_path: Path) -> None:
    module = "tests.models.sampling.triton.compile_sampler"
    compiled = compiled_kernels(tmp_path, "-m", module, "80", "89", "90", "120")
    assert len(compiled) == 4 * NUM_KERNELS
    check(compiled)


def check(compiled: list[Any]) -> None:
    for kernel in compiled:
        assert kernel["shared"] <= SHARED_MEMORY, kernel
        assert kernel["stack"] <= 8, kernel  # one register, which Triton 3.9 spills in one kernel
