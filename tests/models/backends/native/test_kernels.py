"""The compiled products equal the oracle in plain PyTorch, on each instruction set."""

import ctypes

import gguf
import numpy as np
import pytest
import torch

from stonechat_models.backends.native.bindings import (
    Kind,
    Library,
    MatrixStruct,
    Source,
    load_library,
)
from stonechat_models.backends.native.packing import Arena, unpacked_row
from tests.models.backends.native import reference
from tests.models.backends.native.native_helpers import ARCHITECTURES

BLOCK_TYPES = {
    "Q4_1": (Kind.AFFINE4, Source.Q4_1),
    "Q4_0": (Kind.SYMMETRIC4, Source.Q4_0),
    "Q8_0": (Kind.INT8, Source.Q8_0),
}
FLOAT_TYPES = {
    torch.bfloat16: (Kind.BF16, Source.BF16),
    torch.float16: (Kind.HALF, Source.HALF),
    torch.float32: (Kind.FLOAT, Source.FLOAT),
}


@pytest.fixture(params=ARCHITECTURES, scope="module")
def library(request: pytest.FixtureRequest) -> Library:
    return load_library(architecture=request.param)


class Packed:
    """Stored rows that are packed as `kind`, with an optional bias."""

    def __init__(
        self,
        library: Library,
        kind: Kind,
        source: Source,
        rows: np.ndarray,
        k: int,
        bias: np.ndarray | None = None,
    ) -> None:
        self.library, n = library, rows.shape[0]
        self.arena = Arena(library.packed_bytes(kind, n, k))
        self.rows = np.ascontiguousarray(rows)
        index = np.arange(n, dtype=np.int32)
        pool = library.pool_create(2)
        stride = self.rows.shape[1] * self.rows.itemsize
        library.pack(
            *(pool, kind, source, n, k),
            *(self.rows.ctypes.data, stride, index.ctypes.data, self.arena.address),
        )
        library.pool_destroy(pool)
        self.bias = None if bias is None else np.pad(bias, (0, -n % 16)).astype(np.float32)
        address = None if self.bias is None else self.bias.ctypes.data
        self.matrix = MatrixStruct(kind, n, k, self.arena.address, address)

    def times(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        y = torch.empty(x.shape[0], self.matrix.n)
        self.library.matmul(ctypes.byref(self.matrix), x.data_ptr(), x.shape[0], y.data_ptr())
        return y

    def unpacked(self) -> torch.Tensor:
        rows = [unpacked_row(self.library, self.matrix, i) for i in range(self.matrix.n)]
        return torch.from_numpy(np.stack(rows))


def random_blocks(type_name: str, n: int, k: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    blocks: np.ndarray = gguf.quantize(values, gguf.GGMLQuantizationType[type_name])
    return blocks


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 21])
def test_products_equal_the_oracle(library: Library, type_name: str, rows: int) -> None:
    n, k = 37, 224  # the last panel is partly padding
    blocks = random_blocks(type_name, n, k)
    kind, source = BLOCK_TYPES[type_name]
    packed = Packed(library, kind, source, blocks, k)
    torch.manual_seed(rows)
    x = torch.randn(rows, k) * torch.logspace(-3, 2, rows).unsqueeze(1)
    x[0, 32:64] = 0.0
    expected = reference.matmul(x, reference.weights_of_blocks(type_name, blocks))
    error = (packed.times(x) - expected).abs() / expected.abs().amax(1, keepdim=True)
    assert error.max() < (1e-6 if library.isa != "generic" else 1e-5)  # generic rounds twice


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_integer_products_are_exact(library: Library, type_name: str) -> None:
    """Scales of one make all results integers. The weights include the extreme quantised values."""
    n, k = 16, 64
    generator = np.random.default_rng(1)
    blocks = random_blocks(type_name, n, k).reshape(n, k // 32, -1)
    header_bytes = 4 if type_name == "Q4_1" else 2
    blocks[..., header_bytes:] = generator.integers(0, 256, blocks[..., header_bytes:].shape)
    blocks[0, :, header_bytes:] = 0x80 if type_name == "Q8_0" else 0xFF
    halves = np.array([1.0, 3.0][: header_bytes // 2], dtype=np.float16)
    blocks[..., :header_bytes] = halves.view(np.uint8)
    kind, source = BLOCK_TYPES[type_name]
    packed = Packed(library, kind, source, blocks.reshape(n, -1), k)
    x = torch.from_numpy(generator.integers(-127, 128, (9, k))).float()
    x[:, ::32], x[0], x[1] = 127.0, 127.0, -127.0  # so every group has a scale of one
    weights = reference.weights_of_blocks(type_name, blocks.reshape(n, -1))
    expected = x.double() @ weights.dequantized().double().T
    assert torch.equal(packed.times(x).double(), expected)


@pytest.mark.parametrize("type_name", [*BLOCK_TYPES, "float"])
def test_a_row_has_the_same_bits_in_any_batch(library: Library, type_name: str) -> None:
    n, k = 48, 160
    if type_name == "float":
        values = np.random.default_rng(2).standard_normal((n, k)).astype(np.float32)
        packed = Packed(library, Kind.FLOAT, Source.FLOAT, values, k)
    else:
        blocks = random_blocks(type_name, n, k)
        packed = Packed(library, *BLOCK_TYPES[type_name], blocks, k)
    x = torch.randn(32, k)
    together = packed.times(x)
    for i in range(32):
        assert torch.equal(packed.times(x[i : i + 1])[0], together[i])
    assert torch.equal(packed.times(x[5:18]), together[5:18])


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_float_products_and_bias(library: Library, dtype: torch.dtype) -> None:
    n, k = 21, 96
    torch.manual_seed(0)
    weights, x, bias = torch.randn(n, k).to(dtype), torch.randn(11, k), torch.randn(n)
    raw = weights.view(torch.uint8).numpy()
    packed = Packed(library, *FLOAT_TYPES[dtype], raw, k, bias.numpy())
    assert torch.equal(packed.unpacked(), weights.float())
    expected = x.double() @ weights.double().T + bias.double()
    assert torch.allclose(packed.times(x).double(), expected, atol=2e-5)


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_rows_read_back_as_stored(library: Library, type_name: str) -> None:
    blocks = random_blocks(type_name, 19, 96)
    packed = Packed(library, *BLOCK_TYPES[type_name], blocks, 96)
    expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType[type_name])
    assert torch.allclose(packed.unpacked(), torch.from_numpy(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("kind", "bound"), [(Kind.INT8, 0.0065), (Kind.AFFINE4, 0.085)])
def test_quantising_floats(library: Library, kind: Kind, bound: float) -> None:
    """The relative root mean square error, for normally distributed weights, is small."""
    torch.manual_seed(0)
    weights = torch.randn(64, 256) * 0.02
    weights[3] = 0.0
    packed = Packed(library, kind, Source.FLOAT, weights.numpy(), 256)
    error = packed.unpacked() - weights
    assert error.norm() / weights.norm() < bound
    assert error[3].abs().max() == 0.0
