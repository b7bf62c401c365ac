"""A model's weights: rows of memory-mapped files, under their transformers names."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.native.bindings import Kind, Source
from stonechat_models.checkpoint.hf_config import MAX_SIZE
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.model_file import reading

if TYPE_CHECKING:
    import torch

    from stonechat_models.checkpoint.gguf.reader import GgufTensor
    from stonechat_models.checkpoint.headers import ModelHeaders
    from stonechat_models.checkpoint.resolve import ModelFiles

FLOAT_TYPES = ("BF16", "F16", "F32")
CHUNK_ROWS = 1024
"""Number of rows that are dequantised at a time, a multiple of `PANEL`."""
GGUF_SOURCES = {
    "Q4_1": Source.Q4_1,
    "Q4_0": Source.Q4_0,
    "Q8_0": Source.Q8_0,
    "BF16": Source.BF16,
    "F16": Source.HALF,
    "F32": Source.FLOAT,
}
OWN_KINDS = {
    Source.Q4_1: Kind.AFFINE4,
    Source.Q4_0: Kind.SYMMETRIC4,
    Source.Q8_0: Kind.INT8,
    Source.BF16: Kind.BF16,
    Source.HALF: Kind.HALF,
    Source.FLOAT: Kind.FLOAT,
}


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


@dataclass(frozen=True, slots=True)
class Chunk:
    """Stored rows, as `csrc/pack.h` reads them: row i is row `index[i]` of `data`."""

    source: Source
    data: npt.NDArray[np.uint8]
    index: npt.NDArray[np.int32]


class Store(ABC):
    """The tensors of `model` under their transformers names. `types`: those that can be used."""

    norm_offset = 0.0
    """Stored weights of norms minus those of transformers."""

    def __init__(
        self, model: str, tensors: dict[str, Any], types: Collection[str] | None = None
    ) -> None:
        self.model = model
        self._tensors = tensors
        self._types = types
        self._used: set[str] = set()

    def has(self, name: str) -> bool:
        """True if there is such a tensor."""
        return name in self._tensors

    def unused(self) -> list[str]:
        """Return the names of the tensors that nothing has asked for."""
        return sorted(self._tensors.keys() - self._used)

    def rows(self, name: str, *shape: int) -> Rows:
        """Return a matrix of this shape. The matrices of a 3-D tensor lie one behind the other.

        Raises `ModelLoadError` if there is no tensor of that name, or it has another shape, or it
        cannot be used.
        """
        type_name = self._checked_type(name, shape)
        if self._types is not None and type_name not in self._types:
            raise UnsupportedModelError(
                f"{name}: weights of type {type_name} are not supported by the native backend"
            )
        count = prod(shape[:-1])
        if count > MAX_SIZE:
            raise UnsupportedModelError(f"{name} has too many rows for the native backend")
        return Rows(name, type_name, shape[-1], self._order(name, count), self)

    def vector(self, name: str, size: int) -> npt.NDArray[np.float32]:
        """Return a vector of this size as float32. Raises what `rows` raises."""
        self._checked_type(name, (size,))
        return self._vector(name)

    @abstractmethod
    def _vector(self, name: str) -> npt.NDArray[np.float32]:
        """Read a vector."""

    def chunks(self, rows: Rows, kind: Kind) -> Iterator[Chunk]:
        """Yield the rows in order, in a format that can be packed as `kind`."""
        raise NotImplementedError

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
        if tuple(stored) != shape:
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


def open_store(files: "ModelFiles", permuted_heads: dict[str, int]) -> Store:
    """Open a model's weights.

    `permuted_heads` holds the heads of each projection whose rows GGUF files may interleave.
    """
    if files.gguf is not None:
        return GgufStore(files, permuted_heads)
    return SafetensorsStore(files)


class GgufStore(Store):
    """A GGUF file. Block types without a kernel are dequantised, `CHUNK_ROWS` rows at a time."""

    def __init__(self, files: "ModelFiles", heads: dict[str, int]) -> None:
        from stonechat_models.checkpoint.gguf.config import architecture_of
        from stonechat_models.checkpoint.gguf.reader import read_gguf
        from stonechat_models.checkpoint.gguf.weights import NOT_WEIGHTS, module_name

        assert files.gguf is not None
        file = read_gguf(files.gguf)
        architecture = architecture_of(file)
        self._permuted_heads = heads if architecture.permuted_rope else {}
        self.norm_offset = architecture.norm_offset
        weights = (tensor for tensor in file.tensors.values() if tensor.name not in NOT_WEIGHTS)
        tensors = {module_name(file, tensor.name): tensor for tensor in weights}
        super().__init__(files.name, tensors)

    def _order(self, name: str, count: int) -> npt.NDArray[np.int32]:
        """Interleaved RoPE pairs become two halves."""
        order = super()._order(name, count)
        projection = name.split(".")[-2]
        if projection in self._permuted_heads:
            paired = order.reshape(self._permuted_heads[projection], -1, 2)
            order = np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(-1)
        return order

    def _vector(self, name: str) -> npt.NDArray[np.float32]:
        from stonechat_models.checkpoint.gguf.weights import dequantize

        values = dequantize(self._tensor(name)).reshape(-1)
        return np.asarray(values[self._order(name, values.size)], dtype=np.float32)

    def chunks(self, rows: Rows, kind: Kind) -> Iterator[Chunk]:
        tensor: GgufTensor = self._tensor(rows.name)
        stored_rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        becomes_q4_1 = tensor.type_name == "Q4_K" and kind == Kind.AFFINE4
        source = GGUF_SOURCES.get(tensor.type_name)
        if source is not None and (source > Source.Q8_0 or OWN_KINDS[source] == kind):
            yield Chunk(source, stored_rows, rows.index)
            return
        for start in range(0, rows.n, CHUNK_ROWS):
            index = rows.index[start : start + CHUNK_ROWS]
            if becomes_q4_1:
                data = q4_k_as_q4_1(stored_rows[index])
                yield Chunk(Source.Q4_1, data, np.arange(index.size, dtype=np.int32))
            else:
                yield _dequantised(tensor, stored_rows[index])


def own_kind(type_name: str) -> Kind:
    """The packed format of a stored type if no quantisation is requested."""
    if type_name == "Q4_K":
        return Kind.AFFINE4
    source = GGUF_SOURCES.get(type_name)
    return Kind.INT8 if source is None else OWN_KINDS[source]


def q4_k_as_q4_1(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Convert Q4_K rows to Q4_1 rows with the same quantised values.

    A Q4_K block is 8 groups of 32. Their scales and minima are 6-bit multiples of two
    half-precision numbers. These products are rounded to half precision.
    """
    blocks = np.ascontiguousarray(rows).reshape(-1, 144)
    factors = blocks[:, :4].copy().view(np.float16).astype(np.float32)
    packed = blocks[:, 4:16].reshape(-1, 3, 4)
    low, high, mixed = packed[:, 0], packed[:, 1], packed[:, 2]
    scales = np.concatenate([low & 63, (mixed & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([high & 63, (mixed >> 4) | (high >> 6 << 4)], axis=1)
    out = np.empty((blocks.shape[0], 8, 20), dtype=np.uint8)
    pair = np.stack([factors[:, :1] * scales, -factors[:, 1:] * minima], axis=-1)
    out[..., :4] = pair.astype(np.float16).view(np.uint8)
    nibbles = blocks[:, 16:].reshape(-1, 4, 1, 32)
    quantised = np.concatenate([nibbles & 15, nibbles >> 4], axis=2).reshape(-1, 8, 32)
    out[..., 4:] = quantised[..., :16] | (quantised[..., 16:] << 4)
    return out.reshape(rows.shape[0], -1)


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
    return Chunk(Source.FLOAT, data, np.arange(rows.shape[0], dtype=np.int32))


class SafetensorsStore(Store):
    """Safetensors files, read one tensor at a time. Each tensor's entry is its file."""

    def __init__(self, files: "ModelFiles") -> None:
        from safetensors import safe_open

        self._stack = ExitStack()
        tensors: dict[str, Any] = {}
        for path in files.weights:
            with reading(path):
                file = self._stack.enter_context(safe_open(path, framework="pt"))
                tensors |= {name: (file, name) for name in file.keys()}  # noqa: SIM118
        super().__init__(files.name, tensors, FLOAT_TYPES)

    def _read(self, name: str) -> "torch.Tensor":
        file, _ = self._tensor(name)
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def _header(self, tensor: Any) -> tuple[Sequence[int], str]:
        file, name = tensor
        tensor_slice = file.get_slice(name)
        return tensor_slice.get_shape(), str(tensor_slice.get_dtype())

    def _vector(self, name: str) -> npt.NDArray[np.float32]:
        return np.asarray(self._read(name).float().numpy(), dtype=np.float32)

    def chunks(self, rows: Rows, kind: Kind) -> Iterator[Chunk]:
        import torch

        tensor = self._read(rows.name).contiguous()
        data = tensor.view(-1, tensor.shape[-1]).view(torch.uint8).numpy()
        yield Chunk(GGUF_SOURCES[rows.type_name], data, rows.index)

    def close(self) -> None:
        super().close()
        self._stack.close()


class HeaderStore(Store):
    """The headers of a model, to plan how it is loaded: tensors without content."""

    def __init__(self, headers: "ModelHeaders") -> None:
        types = None if headers.weight_format == "gguf" else FLOAT_TYPES
        super().__init__(headers.name, {tensor.name: tensor for tensor in headers.tensors}, types)

    def _order(self, name: str, count: int) -> npt.NDArray[np.int32]:
        return np.broadcast_to(np.int32(0), count)  # takes no memory

    def _vector(self, name: str) -> npt.NDArray[np.float32]:
        return np.broadcast_to(np.float32(0), self._tensor(name).num_elements)
