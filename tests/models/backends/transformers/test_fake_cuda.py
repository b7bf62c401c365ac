"""The whole way from a model's folder to answers, on a CUDA device that is faked on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.nightly import nightly

pytest.importorskip("triton")
ROOT = Path(__file__).parents[4]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs on the device itself")
@pytest.mark.parametrize(
    "test",
    [
        "test_cuda_build.py::test_every_optimisation_is_used_and_tokens_are_right[float32]",
        *nightly(
            "test_cuda_build.py::test_every_optimisation_is_used_and_tokens_are_right[bfloat16]",
            "test_cuda_build.py::test_quantised_weights_and_an_fp8_cache[fp8]",
            "test_cuda_codes.py::test_a_file_is_served_as_it_is[kinds0]",
            "test_cuda_codes.py::test_a_folder_is_served_as_it_is[llama-fp8-block]",
            "test_cuda_codes.py::test_a_folder_is_served_as_it_is[qwen3_moe-nvfp4]",
            "test_cuda_lora.py::test_sequences_of_adapters_and_of_the_model_share_steps",
        ),
    ],
    ids=["float32", "bfloat16", "fp8", "gguf", "folder", "experts", "lora"],
)
def test_an_engine_is_built_and_answers(test):
    """Fused layers, the parity check of attention, sizing, graphs and overlap all take part. In the
    nightly cases so does the choice of kernels by time."""
    chooses = "0" if test.endswith("[float32]") else "1"
    environment = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "FAKE_CUDA_CHOOSES": chooses}
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.models.fake_cuda", "-q"),
            f"tests/gpu/{test}",
        ],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert "1 passed" in result.stdout
