"""Sanitizers find no access past an end, no undefined behaviour and no data race in the library.

All of this runs at night. A driver in C++ also checks that any number of threads computes the same
bits, and that steps that lead outside are refused; it is in C++ because Python itself is not built
with sanitizers. The tests of this folder and damaged model files run in Python too, with a library
built with sanitizers and their runtime loaded before Python. By day `test_borders` checks that
steps that lead outside are refused, and `test_compile` that the sources cause no warning.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from stonechat_models.backends.native.compile import FLAGS, SOURCES, find_compiler
from tests.models.backends.native.native_helpers import ARCHITECTURES
from tests.models.test_model_file import ROOT, child_environment, make_models

DRIVER = Path(__file__).with_name("sanitizer_driver.cpp")
TIMEOUT = 900.0
COMMON_FLAGS = (
    *(flag for flag in FLAGS if flag not in ("-O3", "-shared")),
    *("-O1", "-g", "-fno-sanitize-recover=all"),
)


def compile_and_run(
    source: Path, program: Path, sanitizers: str, architecture: str
) -> subprocess.CompletedProcess[str]:
    """Return the result of the program, or of the compiler if it fails."""
    compiler = find_compiler()
    assert compiler is not None
    flags = (*COMMON_FLAGS, f"-march={architecture}", f"-fsanitize={sanitizers}")
    command = [compiler, *flags, f"-I{SOURCES}", str(source), "-o", str(program)]
    for arguments in (command, [str(program)]):
        result = subprocess.run(
            arguments, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
        if result.returncode:
            break
    return result


def skip_without(sanitizers: str, folder: Path) -> None:
    """Skip the test if not even an empty program runs under these sanitizers here."""
    source = folder / "empty.cpp"
    source.write_text("int main() { return 0; }\n")
    result = compile_and_run(source, folder / "empty", sanitizers, "native")
    if result.returncode:
        pytest.skip(f"-fsanitize={sanitizers} does not work here: {result.stderr.strip()[-200:]}")


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("sanitizers", ["address,undefined,float-cast-overflow", "thread"])
def test_the_library_is_clean(sanitizers: str, tmp_path: Path) -> None:
    """With one instruction set only, because a build with sanitizers takes a quarter minute."""
    skip_without(sanitizers, tmp_path)
    result = compile_and_run(DRIVER, tmp_path / "driver", sanitizers, ARCHITECTURES[-1])
    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
    assert "all equal" in result.stdout


MODULES = (
    *("test_borders", "test_kernels", "test_model", "test_gguf_models", "test_tensors"),
    "test_states",
)
OVERFLOW = """
import ctypes
import numpy as np
from stonechat_models.backends.native.bindings import Kind, MatrixStruct, load_library

data, row = np.zeros(64, np.uint8), np.zeros(32, np.float32)
matrix = MatrixStruct(Kind.F32, 16, 32, data.ctypes.data, None)
load_library().read_row(ctypes.byref(matrix), 0, row.ctypes.data)
"""


def sanitizer_environment(folder: Path) -> dict[str, str]:
    """The environment of a Python whose library is compiled with sanitizers. Skips without them."""
    compiler = find_compiler()
    assert compiler is not None
    script = folder / "compiler"
    flags = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
    # The compiler itself would take several times as long with the runtime in it.
    script.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec "{compiler}" "$@" {flags}\n')
    script.chmod(0o755)
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    queries = [[compiler, f"-print-file-name={name}"] for name in names]
    paths = [subprocess.check_output(query, text=True).strip() for query in queries]
    if not all(Path(path).is_file() for path in paths):
        pytest.skip("the compiler has no shared libraries of the sanitizers")
    return {
        **child_environment(),
        "CXX": str(script),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "LD_PRELOAD": " ".join(paths),
        # Python keeps memory to its end on purpose.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:handle_segv=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def run_python(arguments: list[str], environment: dict[str, str]) -> tuple[int, str]:
    result = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        cwd=ROOT,
        timeout=4 * TIMEOUT,
    )
    return result.returncode, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.nightly
def test_the_tests_of_this_folder_are_clean(tmp_path: Path) -> None:
    environment = sanitizer_environment(tmp_path)
    code, text = run_python(["-c", OVERFLOW], environment)
    assert code != 0
    assert "heap-buffer-overflow" in text
    files = [str(Path(__file__).with_name(f"{name}.py")) for name in MODULES]
    options = ["-q", "-x", "-m", "not nightly", "-p", "no:cacheprovider"]
    # Other instruction sets are other builds; the driver of the sanitizers covers the code.
    options += ["-k", "not other_instruction_sets"]
    code, text = run_python(["-m", "pytest", *options, *files], environment)
    assert code == 0, text[-5000:]


@pytest.mark.slow
@pytest.mark.nightly
def test_damaged_model_files_are_clean(tmp_path: Path) -> None:
    make_models(tmp_path / "models")
    arguments = ["-m", "tests.models.load_mutations", str(tmp_path / "models"), "0", "1500"]
    code, text = run_python(arguments, sanitizer_environment(tmp_path))
    assert code == 0, text[-5000:]
    assert "Traceback" not in text
