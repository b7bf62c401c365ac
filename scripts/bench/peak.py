"""What this machine can do at most: bytes read and int8 operations a second."""

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stonechat_models.backends.native.compile import find_compiler

SOURCE = Path(__file__).with_name("peak.cpp")
FLAGS = ("-O3", "-std=c++17", "-march=native", "-pthread", "-w")


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes a second, and int8 operations a second of each instruction that the processor has."""

    bandwidth: float
    int8: dict[str, float]


def measure_peak(threads: int) -> Peak:
    """Compile and run `peak.cpp`, all threads at the same time. Takes about 5 seconds.

    Raises RuntimeError without a compiler, and CalledProcessError if it fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError("there is no C++ compiler to build peak.cpp with")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(program)], check=True)
        run = subprocess.run(
            [program, str(threads)], check=True, capture_output=True, text=True, timeout=60
        )
    return read_peak(run.stdout)


def read_peak(output: str) -> Peak:
    """The figures of lines such as `read 3e10` and `VNNI 1.2e12`."""
    rates = {name: float(value) for name, value in map(str.split, output.splitlines())}
    return Peak(rates.pop("read"), rates)
