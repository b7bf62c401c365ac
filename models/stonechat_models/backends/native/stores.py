"""Opens a model's weights: a GGUF file, safetensors files, or only their headers."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.native.bindings import Kind
from stonechat_models.backends.native.packed_rows import packed_rows
from stonechat_models.backends.native.tensor_source import (
    CHUNK_ROWS,
    FLOAT_TYPES,
    Chunk,
    GgufStore,
    Rows,
    Store,
)
from stonechat_models.checkpoint.packed.folder import read_packing, stored_tensors, weight_headers
from stonechat_models.checkpoint.packed.tensors import PackedTensor
from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.model_file import reading

if TYPE_CHECKING:
    import torch

    from stonechat_models.checkpoint.headers import ModelHeaders
    from stonechat_models.checkpoint.resolve import ModelFiles


def open_store(files: "ModelFiles", permuted_heads: dict[str, int]) -> Store:
    """Open a model's weights.

    `permuted_heads` holds the heads of each projection whose rows GGUF files may interleave.
    """
    if files.gguf is not None:
        return GgufStore(files, permuted_heads)
    return SafetensorsStore(files)


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
        self._stored = tensors
        packing = read_packing(files, self._read_stored)
        weights = {name: tensors[name] for name in tensors.keys() - packing.consumed}
        super().__init__(files.name, {**weights, **packing.tensors}, FLOAT_TYPES)
        self._packing = packing
        self._adapter = files.adapter
        if files.adapter is not None:
            files.adapter.refuse_missing(files.name, files.adapter.layers.keys() - tensors.keys())

    def are_equal(self, first: str, second: str) -> bool:
        import torch

        if {first, second} & self._packing.tensors.keys():
            return False
        a, b = self._read(first), self._read(second)
        return torch.equal(a, b) if a.dtype == b.dtype else torch.equal(a.float(), b.float())

    def _read(self, name: str) -> "torch.Tensor":
        file, _ = self._tensor(name)
        tensor: torch.Tensor = file.get_tensor(name)
        if self._adapter is not None and name in self._adapter.layers:
            return self._adapter.merged(name, tensor)
        return tensor

    def _header(self, tensor: Any) -> tuple[Sequence[int], str]:
        if isinstance(tensor, PackedTensor):
            return super()._header(tensor)
        file, name = tensor
        tensor_slice = file.get_slice(name)
        return tensor_slice.get_shape(), str(tensor_slice.get_dtype())

    def _vector(self, name: str) -> npt.NDArray[np.float32]:
        packed = self._packing.tensors.get(name)
        values = self._read(name).float() if packed is None else packed.values(self._read_stored)
        return np.asarray(values.numpy(), dtype=np.float32)

    def _read_stored(self, name: str) -> "torch.Tensor":
        tensor: torch.Tensor = self._stored[name][0].get_tensor(name)
        return tensor

    def chunks(self, rows: Rows, kind: Kind) -> Iterator[Chunk]:
        import torch

        packed = self._packing.tensors.get(rows.name)
        if packed is not None:
            parts = packed.read(self._read_stored)
            for start in range(0, rows.n, CHUNK_ROWS):
                index = rows.index[start : start + CHUNK_ROWS]
                source, data = packed_rows(packed, parts, index, kind)
                yield Chunk(source, data, np.arange(index.size, dtype=np.int32))
            return
        tensor = self._read(rows.name).contiguous()
        data = tensor.view(-1, tensor.shape[-1]).view(torch.uint8).numpy()
        yield Chunk(Kind[rows.type_name], data, rows.index)

    def close(self) -> None:
        super().close()
        self._stack.close()


class HeaderStore(Store):
    """The headers of a model, to plan how it is loaded: tensors without content."""

    def __init__(self, headers: "ModelHeaders") -> None:
        self.is_gguf = headers.weight_format == "gguf"
        types = None if self.is_gguf else FLOAT_TYPES
        packing = read_packing(headers)
        weights = weight_headers(headers, packing)
        super().__init__(headers.name, {tensor.name: tensor for tensor in weights}, types)
        self._packing = packing

    def _order(self, name: str, count: int) -> npt.NDArray[np.int32]:
        return np.broadcast_to(np.int32(0), count)  # takes no memory

    def _vector(self, name: str) -> npt.NDArray[np.float32]:
        return np.broadcast_to(np.float32(0), self._tensor(name).num_elements)


def refuse_types(model: "ModelFiles | ModelHeaders", config: EngineConfig) -> None:
    """Raise `UnsupportedModelError` for weights of types that only PyTorch reads."""
    if model.weight_format != "safetensors":
        return
    packing = read_packing(model)
    if not packing.is_read_here:
        raise UnsupportedModelError(
            f"weights in the format {packing.label} are not supported by the native backend"
        )
    if packing.tensors and config.quantize == "none":
        raise UnsupportedModelError(
            f"the native backend does not dequantise {packing.label} weights (--quantize none)"
        )
    for tensor in stored_tensors(model):
        is_weight = tensor.name.endswith(".weight") and tensor.name not in packing.consumed
        if is_weight and tensor.type_name not in FLOAT_TYPES:
            raise UnsupportedModelError(
                f"weights of type {tensor.type_name} are not supported by the native backend"
            )
