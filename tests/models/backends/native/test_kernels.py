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
)
from stonechat_models.backends.native.packing import Arena
from tests.models.backends.native import reference
from tests.models.backends.native.native_helpers import (
    ARCHITECTURES,
    BUILDS,
    library_of,
    unpacked_row,
)
from tests.models.backends.native.random_blocks import (
    BLOCK_TYPES,
    HALVES,
    SUPERBLOCK_TYPES,
    block_size,
    random_blocks,
)

EXACT_TYPES = ("Q8_0", "Q4_0", "Q4_1")
EXACT_BLOCK_TYPES = ("Q2_K", "Q4_K", "Q6_K")  # one for each way of scaling codes on tiles
FLOAT_KINDS = {torch.bfloat16: Kind.BF16, torch.float16: Kind.F16, torch.float32: Kind.F32}


@pytest.fixture(params=BUILDS, scope="module")
def library(request: pytest.FixtureRequest) -> Library:
    return library_of(request.param)


class Packed:
    """Stored rows that are packed as `kind`, in the order `index`, with an optional bias."""

    def __init__(
        self,
        library: Library,
        kind: Kind,
        source: Kind,
        rows: np.ndarray,
        k: int,
        bias: np.ndarray | None = None,
        index: np.ndarray | None = None,
    ) -> None:
        order = np.arange(rows.shape[0]) if index is None else index
        self.order, self.library, n = order.astype(np.int32), library, order.size
        self.num_bytes = library.packed_bytes(kind, n, k)
        self.arena = Arena(self.num_bytes)
        self.arena.array[:] = 0xFF  # packing writes every byte that is read
        self.rows = np.ascontiguousarray(rows)
        pool = library.pool_create(2)
        stride = self.rows.shape[1] * self.rows.itemsize
        library.pack(
            *(pool, kind, source, n, k),
            *(self.rows.ctypes.data, stride, self.order.ctypes.data, self.arena.address),
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


def packed_blocks(library: Library, type_name: str, blocks: np.ndarray, k: int) -> Packed:
    return Packed(library, Kind[type_name], Kind[type_name], blocks, k)


def dequantized(type_name: str, blocks: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(blocks, gguf.GGMLQuantizationType[type_name]))


def length_of(type_name: str) -> int:
    return 512 if type_name in SUPERBLOCK_TYPES else 224


def random_activations(rows: int, k: int) -> torch.Tensor:
    """Some rows have outliers: one, several of one tile's line, or more than are set apart."""
    torch.manual_seed(rows)
    x = torch.randn(rows, k) * torch.logspace(-3, 2, rows).unsqueeze(1)
    x[::2, 37] *= 40.0
    x[1::3, 120:124] *= -2e3
    x[::5, k - 40 : k - 28] *= 1e4
    x[0, 32:64] = 0.0
    return x


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 21])
def test_products_equal_those_of_the_dequantised_weights(
    library: Library, type_name: str, rows: int
) -> None:
    n, k = 37, length_of(type_name)  # the last panel is partly padding
    blocks = random_blocks(type_name, n, k)
    packed, x = packed_blocks(library, type_name, blocks, k), random_activations(rows, k)
    if type_name in SUPERBLOCK_TYPES:
        activations = reference.block_activations(x)
    else:
        quantised, scale = reference.quantize_activations(x)
        activations = (quantised.double() * scale.double().unsqueeze(-1)).flatten(1)
    weights = dequantized(type_name, blocks).double()
    error = (packed.times(x).double() - activations @ weights.T).abs()
    assert (error <= 1e-6 * (activations.abs() @ weights.abs().T)).all()


@pytest.mark.parametrize("type_name", EXACT_TYPES)
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 21])
def test_products_equal_the_oracle(library: Library, type_name: str, rows: int) -> None:
    n, k = 37, 224
    blocks = random_blocks(type_name, n, k)
    packed, x = packed_blocks(library, type_name, blocks, k), random_activations(rows, k)
    expected = reference.matmul(x, reference.weights_of_blocks(type_name, blocks))
    error = (packed.times(x) - expected).abs() / expected.abs().amax(1, keepdim=True)
    assert error.max() < (1e-6 if library.isa != "generic" else 1e-5)  # generic rounds twice


@pytest.mark.parametrize("type_name", EXACT_BLOCK_TYPES)
@pytest.mark.parametrize("rows", [1, 8, 21])
def test_products_of_large_blocks_equal_the_oracle(
    library: Library, type_name: str, rows: int
) -> None:
    n, k = 37, 768
    blocks = random_blocks(type_name, n, k)
    packed, x = packed_blocks(library, type_name, blocks, k), random_activations(rows, k)
    weights = reference.weights_of_large_blocks(type_name, blocks)
    expected = reference.matmul_of_blocks(x, weights)
    if library.isa == "generic":  # it rounds twice
        error = (packed.times(x) - expected).abs() / expected.abs().amax(1, keepdim=True)
        assert error.max() < 1e-5
    else:
        assert torch.equal(packed.times(x), expected)


@pytest.mark.parametrize("rows", [1, 9, 20])
def test_outliers_do_not_cost_the_rest_of_their_block(library: Library, rows: int) -> None:
    """Without them, the rest is rounded as finely as before."""
    n, k = 16, 512
    blocks = random_blocks("Q6_K", n, k)
    packed, weights = packed_blocks(library, "Q6_K", blocks, k), dequantized("Q6_K", blocks)
    torch.manual_seed(0)
    x = torch.randn(rows, k)
    expected = (packed.times(x).double() - x.double() @ weights.double().T).norm()
    x[:, [3, 77, 78, 400]] = torch.tensor([60.0, -50.0, 90.0, 100.0])
    error = (packed.times(x).double() - x.double() @ weights.double().T).norm()
    assert 0.5 * expected < error < 1.5 * expected


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_integer_products_are_exact(library: Library, type_name: str) -> None:
    """Scales of one make all results integers. The weights include the extreme quantised values."""
    n, k = 16, length_of(type_name)
    block, num_bytes = block_size(type_name)
    generator = np.random.default_rng(1)
    blocks = generator.integers(0, 256, (n, k // block, num_bytes), dtype=np.uint8)
    blocks[0], blocks[1] = 0xFF, 0
    blocks[2] = 0x80 if type_name == "Q8_0" else 0x0F
    for at, value in zip(HALVES.get(type_name, (0,)), (1.0, 3.0), strict=False):
        blocks[..., at : at + 2] = np.array([value], dtype=np.float16).view(np.uint8)
    if type_name == "MXFP4":
        blocks[..., 0] = 128  # a factor of one
    blocks = blocks.reshape(n, -1)
    packed = packed_blocks(library, type_name, blocks, k)
    x = torch.from_numpy(generator.integers(-127, 128, (9, k))).float()
    x[:, ::32], x[0], x[1] = 127.0, 127.0, -127.0  # so every group has a scale of one
    expected = x.double() @ dequantized(type_name, blocks).double().T
    assert expected.abs().max() > 1e4
    exact = expected.abs() < 2**22  # sums up to there are exact in float32
    assert exact.any()
    error = (packed.times(x).double() - expected).abs()
    assert error[exact].max() == 0.0 or type_name in ("Q6_K", "Q2_K")
    assert (error <= expected.abs().amax() * 1e-6).all()


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_the_least_activations_give_finite_products(library: Library, type_name: str) -> None:
    """The inverse of their scale would be infinite. They change no other row."""
    k = length_of(type_name)
    packed = packed_blocks(library, type_name, random_blocks(type_name, 20, k), k)
    x = torch.randn(12, k)
    expected = packed.times(x)
    x[3], x[7], x[8] = 1e-38, x[7] * 1e-37, 1e-45
    x[3, ::2] = 0.0
    actual = packed.times(x)
    assert actual[[3, 7, 8]].abs().max() < 1e-30
    others = [row for row in range(12) if row not in (3, 7, 8)]
    assert torch.equal(actual[others], expected[others])


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_activations_that_are_no_numbers_are_seen(library: Library, type_name: str) -> None:
    """Their row has no finite product, and no other row changes."""
    k = length_of(type_name)
    packed = packed_blocks(library, type_name, random_blocks(type_name, 16, k), k)
    x = torch.randn(12, k)
    expected = packed.times(x)
    x[3, 5], x[7, 40], x[8, -1] = float("nan"), float("inf"), float("nan")
    actual = packed.times(x)
    assert not actual[[3, 7, 8]].isfinite().any()
    others = [row for row in range(12) if row not in (3, 7, 8)]
    assert torch.equal(actual[others], expected[others])


@pytest.mark.parametrize("type_name", [*BLOCK_TYPES, "F32", "BF16"])
def test_a_row_has_the_same_bits_in_any_batch(library: Library, type_name: str) -> None:
    n, k = 48, length_of(type_name)
    if type_name in ("F32", "BF16"):
        values = np.random.default_rng(2).standard_normal((n, k)).astype(np.float32)
        packed = Packed(library, Kind[type_name], Kind.F32, values, k)
    else:
        packed = packed_blocks(library, type_name, random_blocks(type_name, n, k), k)
    x = random_activations(129, k)
    alone = torch.cat([packed.times(x[i : i + 1]) for i in range(len(x))])
    for count in (2, 7, 8, 9, 15, 16, 17, 25, 33, 128, 129):
        assert torch.equal(packed.times(x[-count:]), alone[-count:])


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_tiles_of_amx_compute_the_same_bits_as_vectors(type_name: str) -> None:
    if "icelake-server" not in ARCHITECTURES:
        pytest.skip("the processor has no AVX-512")
    x, blocks = random_activations(40, 768), random_blocks(type_name, 24, 768)
    tiles, vectors = (
        packed_blocks(library_of(architecture), type_name, blocks, 768).times(x)
        for architecture in ("native", "icelake-server")
    )
    assert torch.equal(tiles, vectors)


@pytest.mark.parametrize("dtype", FLOAT_KINDS)
@pytest.mark.parametrize("rows", [1, 11, 53])
def test_float_products_and_bias(library: Library, dtype: torch.dtype, rows: int) -> None:
    n, k = 21, 96
    torch.manual_seed(0)
    weights, x, bias = torch.randn(n, k).to(dtype), torch.randn(rows, k), torch.randn(n)
    raw = weights.view(torch.uint8).numpy()
    packed = Packed(library, FLOAT_KINDS[dtype], FLOAT_KINDS[dtype], raw, k, bias.numpy())
    assert torch.equal(packed.unpacked(), weights.float())
    on_tiles = dtype == torch.bfloat16 and library.isa.endswith("amx")
    split = reference.split_activations(x) if on_tiles else x
    assert torch.allclose(split, x, rtol=2**-16)
    expected = split.double() @ weights.double().T + bias.double()
    assert torch.allclose(packed.times(x).double(), expected, atol=2e-5)


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_rows_read_back_as_stored(library: Library, type_name: str) -> None:
    k = length_of(type_name)
    blocks = random_blocks(type_name, 40, k)
    order = np.random.default_rng(5).permutation(40)[:19]
    kind = Kind[type_name]
    packed = Packed(library, kind, kind, blocks, k, index=order)
    expected = dequantized(type_name, blocks)[order]
    assert torch.allclose(packed.unpacked(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_packed_weights_take_no_more_than_the_file(library: Library, type_name: str) -> None:
    n, k = 32, 768
    num_bytes = random_blocks(type_name, n, k).size
    assert library.row_bytes(Kind[type_name], k) * n == num_bytes
    assert num_bytes <= library.packed_bytes(Kind[type_name], n, k) <= num_bytes + 2 * 63


@pytest.mark.parametrize("source", FLOAT_KINDS)
@pytest.mark.parametrize("kind", FLOAT_KINDS)
def test_floats_are_stored_as_another_type(
    library: Library, source: torch.dtype, kind: torch.dtype
) -> None:
    torch.manual_seed(0)
    weights = torch.randn(18, 64).to(source)
    raw = weights.view(torch.uint8).numpy()
    packed = Packed(library, FLOAT_KINDS[kind], FLOAT_KINDS[source], raw, 64)
    assert torch.equal(packed.unpacked(), weights.to(kind).float())


@pytest.mark.parametrize(("kind", "bound"), [(Kind.Q8_0, 0.0065), (Kind.Q4_1, 0.085)])
def test_quantising_floats(library: Library, kind: Kind, bound: float) -> None:
    """The relative root mean square error, for normally distributed weights, is small."""
    torch.manual_seed(0)
    weights = torch.randn(64, 256) * 0.02
    weights[3] = 0.0
    packed = Packed(library, kind, Kind.F32, weights.numpy(), 256)
    error = packed.unpacked() - weights
    assert error.norm() / weights.norm() < bound
    assert error[3].abs().max() == 0.0
