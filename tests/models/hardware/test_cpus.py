"""The name of the processor, and the instruction sets of this process.

The length of SVE vectors is asked for in an emulator.
"""

import platform
import subprocess
from pathlib import Path

import pytest

from stonechat_models.hardware import cpus
from tests.models.backends.native.emulated import COMPILER, run_emulated, skip_without_emulator

CPUINFO = "processor\t: 0\nvendor_id\t: X\nmodel name\t: Some CPU @ 2.0GHz: fast\nflags\t: a b\n"
PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
int main(int n, char** a) {
  printf("%d", prctl(atoi(a[1]), atoi(a[2]), atoi(a[3]), atoi(a[4]), atoi(a[5])));
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes the system call `prctl` with its arguments, and prints the result."""
    skip_without_emulator()
    path = tmp_path_factory.mktemp("prctl") / "program"
    command = [COMPILER, "-x", "c++", "-", "-o", str(path)]
    subprocess.run(command, input=PROGRAM, text=True, check=True)
    return path


@pytest.mark.parametrize(
    ("vectors", "bits"),
    [("sve128=on", 128), ("sve256=on", 256), ("sve512=on", 512), ("sve=off", 0)],
)
def test_the_length_of_sve_vectors(vectors: str, bits: int, program: Path) -> None:
    def prctl(*arguments: int) -> int:
        command = run_emulated(program, *map(str, arguments), vectors=vectors)
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert cpus.sve_bits(prctl) == bits


@pytest.mark.parametrize(
    ("features", "expected"),
    [("fp asimd", {"fp", "asimd"}), ("fp sve i8mm", {"fp", "sve", "i8mm", "sve256"}), ("", set())],
)
def test_the_length_is_one_of_the_instruction_sets(
    features: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus, "processor_field", lambda *names: features)
    monkeypatch.setattr(cpus, "sve_bits", lambda prctl: 256)
    assert cpus.processor_flags() == expected


def test_the_processor_is_named_by_linux_or_else_by_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "other")
    monkeypatch.setattr(Path, "read_text", lambda _: CPUINFO)
    assert cpus.cpu_name() == "Some CPU @ 2.0GHz: fast"
    monkeypatch.setattr(Path, "read_text", lambda _: "processor\t: 0\n")
    assert cpus.cpu_name() == "other"

    def missing(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert cpus.cpu_name() == "other"
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert cpus.cpu_name() == "arm64"
