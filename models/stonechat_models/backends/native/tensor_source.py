"""A model's weights: rows of memory-mapped files, under their transformers names."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.native.bindings import Kind
from stonechat_models.backends.native.packed_rows import packed_kind
from stonechat_models.checkpoint.hf_config import MAX_SIZE
from stonechat_models.checkpoint.packed.tensors import Packing
from stonechat_models.errors import ModelLoadError, UnsupportedModelError

if TYPE_CHECKING:
    from stonechat_models.checkpoint.gguf.reader import GgufTensor
    from stonechat_models.checkpoint.resolve import ModelFiles

FLOAT_TYPES = ("BF16", "F16", "F32")
CHUNK_ROWS = 1024
"""Number of rows that are dequantised at a time, a multiple of `PANEL`."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A matrix [n, k] that is not read yet. Row i is row `index[i]` of the stored tensor."""

    name: str
    type_name: str
    k: int
    index: npt.NDArray[np.int32]
    store: "Store"

    @property
    def n(self) -> int:
        return int(self.index.size)

    def take(self, start: int, stop: int) -> "Rows":
        return replace(self, index=self.index[start:stop])

    def chunks(self, kind: Kind) -> Iterator["Chunk"]:
        """Yield the rows in order, in a format that can be packed as `kind`."""
        return self.store.chunks(self, kind)

    def release(self) -> None:
        """Say that the rows are read: they need no memory until they are read again."""
        self.store.release(self.name)


@dataclass(frozen=True, slots=True)
class Stack:
    """Matrices one behind the other. Each has a multiple of `PANEL` rows."""

    parts: tuple[Rows, ...]

    @property
    def name(self) -> str:
        return self.parts[0].name

    @property
    def type_name(self) -> str:
        return self.parts[0].type_name

    @property
    def k(self) -> int:
        return self.parts[0].k

    @property
    def n(self) -> int:
        return sum(part.n for part in self.parts)

    def chunks(self, kind: Kind) -> Iterator["Chunk"]:
        """Yield the rows of all parts in order."""
        for part in self.parts:
            yield from part.chunks(kind)

    def release(self) -> None:
        """Say that the rows are read."""
        for part in self.parts:
            part.release()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Stored rows, as `csrc/pack.h` reads them: row i is row `index[i]` of `data`."""

    source: Kind
    data: npt.NDArray[np.uint8]
    index: npt.NDArray[np.int32]


class Store(ABC):
    """The tensors of `model` under their transformers names. `types`: those that can be used."""

    norm_offset = 0.0
    """Stored weights of norms minus those of transformers."""
    is_gguf = False
    """Whether the tensors are those of a GGUF file. It stores kernels of convolutions as matrices,
    perhaps a matrix of one row as a vector, and decays instead of their logarithms."""

    def __init__(
        self, model: str, tensors: dict[str, Any], types: Collection[str] | None = None
    ) -> None:
        self.model = model
        self._tensors = tensors
        self._types = types
        self._packing = Packing()
        """The weights in packed formats."""
        self._used: set[str] = set()

    def has(self, name: str) -> bool:
        """True if there is such a tensor."""
        return name in self._tensors

    def are_equal(self, first: str, second: str) -> bool:
        """Whether two tensors hold the same values; True if they are not read."""
        return True

    def unused(self) -> list[str]:
        """Return the names of the tensors that nothing has asked for, but for biases of zeros."""
        names = sorted(self._tensors.keys() - self._used)
        return [n for n in names if n not in self._packing.spare_biases or self._vector(n).any()]

    def rows(self, name: str, *shape: int) -> Rows:
        """Return a matrix of this shape. The matrices of a 3-D tensor lie one behind the other.

        Raises `ModelLoadError` if there is no tensor of that name, or it has another shape, or it
        cannot be used.
        """
        type_name = self._checked_type(name, shape)
        is_packed = name in self._packing.tensors
        if self._types is not None and type_name not in self._types and not is_packed:
            raise UnsupportedModelError(
                f"{name}: weights of type {type_name} are not supported by the native backend"
            )
        count = prod(shape[:-1])
        if count > MAX_SIZE:
            raise UnsupportedModelError(f"{name} has too many rows for the native backend")
        return Rows(name, type_name, shape[-1], self._order(name, count), self)

    def vector(self, name: str, *shape: int) -> npt.NDArray[np.float32]:
        """Return a small tensor of this shape as float32. Raises what `rows` raises."""
        self._checked_type(name, shape)
        return self._vector(name).reshape(shape)

    def num_dimensions(self, name: str) -> int:
        """Return the number of dimensions of a tensor. Raises `ModelLoadError` if it is missing."""
        return len(self._header(self._tensor(name))[0])

    @abstractmethod
    def _vector(self, name: str) -> npt.NDArray[np.float32]:
        """Read a vector."""

    def chunks(self, rows: Rows, kind: Kind) -> Iterator[Chunk]:
        """Yield the rows in order, in a format that can be packed as `kind`."""
        raise NotImplementedError

    def release(self, name: str) -> None:  # noqa: B027
        """Free the memory that a tensor's rows took while they were read, if that can be done."""

    def close(self) -> None:
        """Release the files."""
        self._tensors = {}

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            raise ModelLoadError(f"{self.model} has no weights for {name}; download it again")
        self._used.add(name)
        return self._tensors[name]

    def _checked_type(self, name: str, shape: tuple[int, ...]) -> str:
        """The type of a tensor that must have this shape."""
        stored, type_name = self._header(self._tensor(name))
        packed = self._packing.tensors.get(name)
        if not (tuple(stored) == shape if packed is None else packed.can_have(shape)):
            actual, expected = (" x ".join(map(str, sizes)) for sizes in (stored, shape))
            raise ModelLoadError(
                f"{self.model}: {name} is {actual}, expected {expected}; download it again"
            )
        return type_name

    def _header(self, tensor: Any) -> tuple[Sequence[int], str]:
        """The shape and the stored type of a tensor."""
        return tensor.shape, tensor.type_name

    def _order(self, name: str, count: int) -> npt.NDArray[np.int32]:
        """Indices of the stored rows in transformers' order."""
        return np.arange(count, dtype=np.int32)


class GgufStore(Store):
    """A GGUF file. Block types without a kernel are dequantised, `CHUNK_ROWS` rows at a time."""

    def __init__(self, files: "ModelFiles", heads: dict[str, int]) -> None:
        from stonechat_models.checkpoint.gguf.config import architecture_of
        from stonechat_models.checkpoint.gguf.names import module_name, weights_of, whole_name
        from stonechat_models.checkpoint.gguf.reader import read_gguf

        assert files.gguf is not None
        file = read_gguf(files.gguf, skip_texts=True)
        architecture = architecture_of(file)
        self._permuted_heads = heads if architecture.permuted_rope else {}
        self.norm_offset = architecture.norm_offset
        self.is_gguf = True
        tensors = {
            whole_name(files.config, module_name(file, tensor.name)): tensor
            for tensor in weights_of(file)
        }
        super().__init__(files.name, tensors)

    def _order(self, name: str, count: int) -> npt.NDArray[np.int32]:
        """Interleaved RoPE pairs become two halves."""
        order = super()._order(name, count)
        projection = name.split(".")[-2]
        if projection in self._permuted_heads:
            paired = order.reshape(self._permuted_heads[projection], -1, 2)
            order = np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(-1)
        return order

    def release(self, name: str) -> None:
        self._tensor(name).release()

    def _vector(self, name: str) -> npt.NDArray[np.float32]:
        from stonechat_models.checkpoint.gguf.weights import dequantize

        values = dequantize(self._tensor(name)).reshape(-1)
        return np.asarray(values[self._order(name, values.size)], dtype=np.float32)

    def chunks(self, rows: Rows, kind: Kind) -> Iterator[Chunk]:
        tensor: GgufTensor = self._tensor(rows.name)
        stored_rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        source = Kind.__members__.get(tensor.type_name)
        if source is not None and (source == kind or not source.is_quantised):
            yield Chunk(source, stored_rows, rows.index)
            return
        for start in range(0, rows.n, CHUNK_ROWS):
            yield _dequantised(tensor, stored_rows[rows.index[start : start + CHUNK_ROWS]])


def own_kind(type_name: str) -> Kind:
    """The packed format of a stored type if no quantisation is requested."""
    own = packed_kind(type_name) or Kind.__members__.get(type_name)
    return Kind.Q8_0 if own is None else own


def _dequantised(tensor: "GgufTensor", rows: npt.NDArray[np.uint8]) -> Chunk:
    import gguf

    try:
        kind = gguf.GGMLQuantizationType[tensor.type_name]
        values = gguf.dequantize(rows, kind)
    except (NotImplementedError, KeyError) as error:
        raise UnsupportedModelError(
            f"{tensor.name}: weights of type {tensor.type_name} cannot be read"
        ) from error
    data = np.ascontiguousarray(values, dtype=np.float32).view(np.uint8)
    return Chunk(Kind.F32, data, np.arange(rows.shape[0], dtype=np.int32))
