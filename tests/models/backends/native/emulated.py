"""The library for another processor: cross-compiled, and run by an emulator in another process.

Memory is copied to the other process before each call, and results are copied back.
"""

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from stonechat_models.backends.native.bindings import MatrixStruct
from stonechat_models.backends.native.compile import build_library
from stonechat_models.backends.native.levels import LEVELS
from tests.models.backends.native.native_helpers import built_quickly

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ARM = {level.name: level.flags for level in LEVELS["aarch64"]}
"""The flags of the compiler for each instruction set."""
LIBRARIES = "/usr/aarch64-linux-gnu"
WORDS = 16
ALLOCATE, FREE, WRITE, READ, FIND, CALL = range(6)


def skip_without_emulator() -> None:
    for program in (COMPILER, EMULATOR):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}")


def run_emulated(program: Path, *arguments: str, vectors: str = "sve256=on") -> list[str]:
    """The command that runs an Arm program on a processor with all extensions.

    Its SVE vectors have 256 bits, or what `vectors` says.
    """
    return [EMULATOR, "-cpu", f"max,{vectors}", "-L", LIBRARIES, str(program), *arguments]


def build_emulated(level: str) -> Path:
    """Return the path of the library, which the build has made with the cross compiler."""
    with pytest.MonkeyPatch.context() as patch, built_quickly():
        patch.setenv("CXX", COMPILER)
        return build_library(lambda line: None, ARM[level])


def build_server(folder: Path) -> Path:
    program = folder / "call_server"
    source = Path(__file__).with_name("call_server.cpp")
    subprocess.run([COMPILER, "-O1", str(source), "-ldl", "-o", str(program)], check=True)
    return program


class EmulatedLibrary:
    """The functions of `Library` that the tests of the products call, with the same arguments."""

    def __init__(self, level: str, folder: Path) -> None:
        command = run_emulated(build_server(folder), str(build_emulated(level)))
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        self._memory: list[int] = []
        text = self._call("sc_isa")
        self.isa = self._read(text, 32).split(b"\0")[0].decode()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def packed_bytes(self, kind: int, n: int, k: int) -> int:
        return self._call("sc_packed_bytes", kind, n, k)

    def row_bytes(self, kind: int, k: int) -> int:
        return self._call("sc_row_bytes", kind, k)

    def pool_create(self, threads: int) -> int:
        return self._call("sc_pool_create", threads)

    def pool_destroy(self, pool: int) -> None:
        self._call("sc_pool_destroy", pool)

    def pack(self, pool: int, kind: int, source: int, n: int, k: int, *pointers: int) -> None:
        rows, stride, index, out = pointers
        last = max((ctypes.c_int32 * n).from_address(index))
        size = self.packed_bytes(kind, n, k)
        to = self._allocate(size)
        there = (self._copied(rows, stride * (last + 1)), stride, self._copied(index, 4 * n), to)
        self._call("sc_pack", pool, kind, source, n, k, *there)
        self._copy_back(to, out, size)

    def read_row(self, matrix: object, row: int, out: int) -> None:
        there, shape = self._matrix(matrix)
        to = self._allocate(4 * shape.k)
        self._call("sc_read_row", there, row, to)
        self._copy_back(to, out, 4 * shape.k)

    def matmul(self, matrix: object, x: int, m: int, y: int) -> None:
        there, shape = self._matrix(matrix)
        to = self._allocate(4 * m * shape.n)
        self._call("sc_matmul", there, self._copied(x, 4 * m * shape.k), m, to)
        self._copy_back(to, y, 4 * m * shape.n)

    def _matrix(self, reference: object) -> tuple[int, MatrixStruct]:
        """Copy a matrix that is given by reference; return its address there and its fields."""
        matrix: MatrixStruct = reference._obj  # type: ignore[attr-defined]
        there = MatrixStruct.from_buffer_copy(matrix)
        there.data = self._copied(matrix.data, self.packed_bytes(matrix.kind, matrix.n, matrix.k))
        if matrix.bias:
            there.bias = self._copied(matrix.bias, 4 * (-(-matrix.n // 16) * 16))
        return self._copied(ctypes.addressof(there), ctypes.sizeof(there)), matrix

    def _call(self, name: str, *arguments: int) -> int:
        function = self._ask(FIND, *struct.unpack("<4Q", name.encode().ljust(32, b"\0")))
        assert function, name
        return self._ask(CALL, function, *arguments)

    def _ask(self, *words: int, data: bytes = b"") -> int:
        padded = [word & (1 << 64) - 1 for word in words] + [0] * (WORDS - len(words))
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(struct.pack(f"<{WORDS}Q", *padded) + data)
        stdin.flush()
        return int.from_bytes(self._receive(8), "little")

    def _receive(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        assert len(data) == size, "the emulated process has died"
        return data

    def _allocate(self, size: int) -> int:
        self._memory.append(self._ask(ALLOCATE, size))
        return self._memory[-1]

    def _copied(self, address: int, size: int) -> int:
        there = self._allocate(size)
        self._ask(WRITE, there, size, data=ctypes.string_at(address, size))
        return there

    def _read(self, address: int, size: int) -> bytes:
        self._ask(READ, address, size)
        return self._receive(size)

    def _copy_back(self, address: int, to: int, size: int) -> None:
        """Copy a result, and free all memory of the call."""
        ctypes.memmove(to, self._read(address, size), size)
        while self._memory:
            self._ask(FREE, self._memory.pop())
