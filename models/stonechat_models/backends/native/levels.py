"""The processors that a platform wheel carries compiled kernels for, and the choice among them.

The hook that builds the wheel loads this file by its path, so it imports the standard library only.
A library's name holds a hash of the sources and flags that it was compiled from. A library of other
sources is therefore never found.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
PREBUILT = Path(__file__).parent / "prebuilt"
"""The libraries of a platform wheel. The folder exists in no other installation."""
FLAGS = (
    *("-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared"),
    *("-pthread", "-Wall", "-Wextra"),
)
"""The compiler's flags for every processor."""


@dataclass(frozen=True, slots=True)
class Level:
    """A kind of processor, with what a library for it must be able to rely on."""

    name: str
    flags: tuple[str, ...]
    """What tells the compiler (GCC, clang) which instructions there are."""
    needs: frozenset[str]
    """What `processor_flags` must report: what Linux lists in `/proc/cpuinfo`, and `sve256`."""


_AVX2 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"}
_BF16 = _AVX512 | {"avx512_bf16"}
_DOTPROD = frozenset({"asimddp", "asimdhp"})
_SVE256 = _DOTPROD | {"sve256", "svei8mm", "svebf16", "i8mm", "bf16"}
SVE_LENGTH = "-msve-vector-bits=256"
"""Without this flag SVE vectors have an unknown length, and there are no kernels for them."""

_V4_VNNI = ("-march=x86-64-v4", "-mavx512vnni")
_V4_BF16 = (*_V4_VNNI, "-mavx512bf16")
_V4_AMX = (*_V4_BF16, "-mamx-tile", "-mamx-int8", "-mamx-bf16")

LEVELS = {
    "x86_64": (
        Level("avx512-amx", _V4_AMX, _BF16 | {"amx_tile", "amx_int8", "amx_bf16"}),
        Level("avx512-bf16", _V4_BF16, _BF16),
        Level("avx512", _V4_VNNI, _AVX512),
        Level("avx2-vnni", ("-march=x86-64-v3", "-mavxvnni"), _AVX2 | {"avx_vnni"}),
        Level("avx2", ("-march=x86-64-v3",), _AVX2),
        Level("plain", ("-march=x86-64",), frozenset()),
    ),
    "aarch64": (
        Level("sve256", ("-march=armv8.2-a+dotprod+fp16+sve+i8mm+bf16", SVE_LENGTH), _SVE256),
        Level("neon-i8mm", ("-march=armv8.2-a+dotprod+fp16+i8mm",), _DOTPROD | {"i8mm"}),
        Level("neon-dotprod", ("-march=armv8.2-a+dotprod+fp16",), _DOTPROD),
        Level("neon", ("-march=armv8-a",), frozenset()),
    ),
}
"""The levels by `platform.machine()`, the fastest first. The last one needs nothing."""


def library_name(machine: str, level: Level) -> str:
    """Return the file name of the library for a level, made of the present sources."""
    digest = hashlib.sha256("\0".join(FLAGS).encode())
    add_sources(digest, SOURCES)
    return f"{machine}-{level.name}-{digest.hexdigest()[:16]}.so"


def add_sources(digest: "hashlib._Hash", folder: Path) -> None:
    """Add the names and contents of the files in a folder to a hash."""
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())


def find_prebuilt(machine: str, flags: Collection[str]) -> Path | None:
    """Return the fastest library of the wheel that a processor with these flags can run.

    Returns None if this is no platform wheel, or its libraries come from other sources.
    """
    if not PREBUILT.is_dir():
        return None
    paths = (
        PREBUILT / library_name(machine, level)
        for level in LEVELS.get(machine, ())
        if level.needs <= set(flags)
    )
    return next((path for path in paths if path.is_file()), None)
