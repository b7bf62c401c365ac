"""The kernels for Arm equal the oracle and the kernels of this machine.

They are cross-compiled and run by an emulator, so their speed is not tested.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stonechat_models.backends.native.compile import FLAGS, SOURCES, find_compiler
from tests.models.backends.native.emulated import (
    ARM,
    COMPILER,
    EmulatedLibrary,
    run_emulated,
    skip_without_emulator,
)
from tests.models.backends.native.native_helpers import ARCHITECTURES
from tests.models.backends.native.test_kernels import *  # noqa: F403  the same tests again
from tests.nightly import nightly

del test_tiles_of_amx_compute_the_same_bits_as_vectors  # noqa: F821  needs no emulator

pytestmark = pytest.mark.slow
DAILY = "sve256"
LEVELS = [DAILY, *nightly(*(level for level in ARM if level != DAILY))]
DRIVER = Path(__file__).with_name("sanitizer_driver.cpp")


@pytest.fixture(params=LEVELS, scope="module")  # type: ignore[no-redef]
def library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmulatedLibrary]:
    skip_without_emulator()
    emulated = EmulatedLibrary(request.param, tmp_path_factory.mktemp("emulated"))
    assert emulated.isa == request.param
    yield emulated
    emulated.close()


def logits_of_driver(compiler: str, target: tuple[str, ...], folder: Path) -> np.ndarray:
    """The logits that the driver of the sanitizers computes with an instruction set."""
    folder.mkdir()
    program, output = folder / "driver", folder / "logits"
    flags = [flag for flag in FLAGS if flag not in ("-O3", "-shared")]
    flags += ["-O1", "-w", *target, f"-I{SOURCES}"]
    subprocess.run([compiler, *flags, str(DRIVER), "-o", str(program)], check=True)
    command = [str(program), str(output)]
    if compiler == COMPILER:
        command = run_emulated(program, str(output))
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "all equal" in result.stdout
    return np.fromfile(output, dtype=np.float32)


@pytest.mark.nightly
def test_models_compute_the_same_on_arm(tmp_path: Path) -> None:
    """Also runs the pool with several threads, and checks that each row keeps its bits.

    Compared with AVX2 if the processor has it: the matrix registers of `native` round otherwise.
    So do the products of bfloat16 numbers in SVE.
    """
    skip_without_emulator()
    compiler = find_compiler()
    assert compiler is not None
    architecture = "haswell" if "haswell" in ARCHITECTURES else "native"
    here = logits_of_driver(compiler, (f"-march={architecture}",), tmp_path / "here")
    for level, target in ARM.items():
        there = logits_of_driver(COMPILER, target, tmp_path / level)
        assert here.shape == there.shape
        tolerance = 0.02 if level == "sve256" else 1e-4
        assert np.abs(here - there).max() < tolerance * np.abs(here).max()
