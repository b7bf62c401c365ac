"""Sanitizers find no access past an end, no undefined behaviour and no data race in the library.

They run a driver in C++, because Python itself is not built with sanitizers. The driver also checks
that any number of threads computes the same bits.
"""

import subprocess
from pathlib import Path

import pytest

from stonechat_models.backends.native.compile import FLAGS, SOURCES, find_compiler
from tests.models.backends.native.native_helpers import ARCHITECTURES

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
@pytest.mark.parametrize("sanitizers", ["address,undefined,float-cast-overflow", "thread"])
def test_the_library_is_clean(sanitizers: str, tmp_path: Path) -> None:
    """With one instruction set only, because a build with sanitizers takes a quarter minute."""
    skip_without(sanitizers, tmp_path)
    result = compile_and_run(DRIVER, tmp_path / "driver", sanitizers, ARCHITECTURES[-1])
    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
    assert "all equal" in result.stdout
