"""The sampler's Triton kernels compile to machine code for several GPUs, without a GPU."""

from pathlib import Path

import pytest

from tests.models.compiled import compiled_kernels

pytest.importorskip("triton")

NUM_KERNELS = 9 + 6
"""Six of them are compiled for bfloat16 too."""
LARGEST = "choose_kernel"
SHARED_MEMORY = 48 * 1024
"""Bytes that every GPU has for a thread block."""


@pytest.mark.parametrize(
    ("words", "num_compiled"),
    [
        (["90", LARGEST], 2),
        pytest.param(["80", "89", "90", "120"], 4 * NUM_KERNELS, marks=pytest.mark.nightly),
    ],
)
def test_kernels_compile_without_spills(
    words: list[str], num_compiled: int, tmp_path: Path
) -> None:
    compiled = compiled_kernels(
        tmp_path, "-m", "tests.models.sampling.triton.compile_sampler", *words
    )
    assert len(compiled) == num_compiled
    for kernel in compiled:
        assert kernel["shared"] <= SHARED_MEMORY, kernel
        assert kernel["stack"] <= 8, kernel  # one register, which Triton 3.9 spills in one kernel
