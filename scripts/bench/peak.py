"""What this machine can do at most: bytes read and int8 operations a second."""

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stonechat_models.backends.native.compile import find_compiler
from stonechat_models.diagnostics.bandwidth import measure_bandwidth

SOURCE = Path(__file__).with_name("int8_peak.cpp")


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes a second, and int8 operations a second of each instruction that the processor has."""

    bandwidth: float
    int8: dict[str, float]


def measure_peak(threads: int) -> Peak:
    """Measure both on `threads` threads, which takes 2 or 3 seconds. `int8` needs a compiler."""
    return Peak(measure_bandwidth(num_threads=threads), int8_peak(threads))


def int8_peak(threads: int) -> dict[str, float]:
    """Compile and run `int8_peak.cpp`. Empty without a compiler or a known instruction."""
    compiler = find_compiler()
    if compiler is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "int8_peak"
        flags = ("-O2", "-std=c++17", "-march=native", "-pthread", "-w")
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(program)], check=True)
        run = subprocess.run(
            [program, str(threads)], check=True, capture_output=True, text=True, timeout=60
        )
    return read_peaks(run.stdout)


def read_peaks(output: str) -> dict[str, float]:
    """The figures of lines such as `VNNI 1.2e12`."""
    return {name: float(value) for name, value in map(str.split, output.splitlines())}
