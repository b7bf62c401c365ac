"""Keeps the quantised weights of a GGUF file as they are, in place of a module's float weights."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from stonechat_models.backends.quantization.codes.coded_linear import CodedEmbedding, CodedLinear
from stonechat_models.backends.quantization.codes.codes import PRODUCT_TOLERANCE, Codes
from stonechat_models.backends.quantization.codes.gguf_codes import GGUF_TYPES, gguf_codes
from stonechat_models.backends.quantization.scratch import Scratch
from stonechat_models.backends.transformers.stored.code_compile import compile_products
from stonechat_models.backends.transformers.stored.lazy_weight import LazyWeight
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.gguf.names import place_of, weights_of, whole_name
from stonechat_models.checkpoint.gguf.reader import GgufFile, GgufTensor
from stonechat_models.checkpoint.gguf.weights import (
    Values,
    dequantize,
    lazy_parameters,
    stored_rows,
)
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.checkpoint.packed.folder import read_packing, reader_of, stored_files
from stonechat_models.checkpoint.packed.tensors import PackedTensor
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.errors import UnsupportedModelError

CHECKED_ROWS = 16
"""How many rows of each weight the parity check of its product compares."""


@dataclass(slots=True)
class CodedParts:
    """Modules with codes, by the names of the modules that they replace, and all other weights."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    weights: dict[str, LazyWeight] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    """The names of stored tensors that experts hold."""

    def __bool__(self) -> bool:
        return bool(self.modules)

    def add_embedding(self, name: str, linear: CodedLinear, empty: nn.Module) -> None:
        """Add the embedding `name` of `empty` with the weight of `linear`, its tied head if any."""
        embedding: Any = empty.get_submodule(name)
        scale = getattr(embedding, "scalar_embed_scale", None)
        self.modules[name] = CodedEmbedding(linear.parts[0], linear.weight.dtype, scale)
        head = _tied_head(empty, embedding)
        if head is not None:
            self.modules[head] = linear


def read_codes(
    gguf: GgufFile,
    config: HFConfig,
    empty: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> CodedParts:
    """Read the weights of `empty`, which is on the meta device, as codes where there are kernels.

    Codes are on `device`. Other weights become floats of `dtype` when they are loaded. Raises
    `UnsupportedModelError` if a product is wrong, and what `write_weights` raises.
    """
    from stonechat_models.backends.transformers.stored.experts import gguf_experts

    parts, scratch = CodedParts(), Scratch(device, dtype)
    for name, experts, stored in gguf_experts(gguf, config, empty, dtype, device):
        parts.modules[name] = experts
        parts.held |= {tensor.name for tensor in stored}
    tensors, modules = weights_of(gguf), dict[str, Any](empty.named_modules())
    for i, tensor in enumerate(tensors):
        if i % 100 == 0:
            progress(f"loading {gguf.path.name}: tensor {i + 1} of {len(tensors)}")
        target = whole_name(config, place_of(gguf, tensor.name).target)
        name = target.removesuffix(".weight")
        old = modules.get(name) if target != name else None
        codes = None
        if old is not None and is_replaceable(old):
            codes = _codes(gguf, config, tensor, device, dtype)
        if codes is None or old is None or codes.shape != old.weight.shape:
            continue
        if isinstance(old, nn.Linear):
            parts.modules[name] = CodedLinear([codes], old.bias, scratch, dtype)
        else:
            parts.add_embedding(name, CodedLinear([codes], None, scratch, dtype), empty)
    if parts:
        coded = {f"{name}.weight" for name in parts.modules}
        others = lazy_parameters(gguf, config, parts.held)
        parts.weights = as_weights(((n, v) for n, v in others if n not in coded), dtype)
    return parts


def read_expert_codes(
    files: ModelFiles, empty: nn.Module, dtype: torch.dtype, device: torch.device
) -> CodedParts:
    """Read the experts of gpt-oss's safetensors as codes, all or none. `weights` stay empty.

    Raises as `read_codes` does.
    """
    from stonechat_models.backends.transformers.stored.experts import mxfp4_experts

    parts, packing = CodedParts(), read_packing(files)
    with stored_files(files) as stored:
        read = reader_of(stored)
        for name, experts, held in mxfp4_experts(packing.tensors, read, empty, dtype, device):
            parts.modules[name] = experts
            parts.held |= set(held)
    return parts if parts.held >= packing.consumed else CodedParts()


def has_expert_codes(files: ModelFiles) -> bool:
    """Whether `read_expert_codes` can read experts."""
    if files.weight_format != "safetensors":
        return False
    return any(map(is_expert_code, read_packing(files).tensors.values()))


def is_expert_code(tensor: PackedTensor) -> bool:
    """Whether these are the experts of a layer in MXFP4, which transformers itself reads."""
    return tensor.type_name == "MXFP4" and tensor.layout is None


def with_codes(empty: nn.Module, parts: CodedParts) -> Any:
    """A class like that of `empty`, whose instances have the parts with codes from the start."""
    original: Any = type(empty)

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        original.__init__(self, *args, **kwargs)
        for name, part in parts.modules.items():
            self.set_submodule(name, part)
        tied = self.all_tied_weights_keys.items()
        self.all_tied_weights_keys = {
            name: source
            for name, source in tied
            if name.removesuffix(".weight") not in parts.modules
        }

    members = {"__init__": build, "__module__": original.__module__}
    return type(original.__name__, (original,), members)


def _codes(
    gguf: GgufFile,
    config: HFConfig,
    tensor: GgufTensor,
    device: torch.device,
    dtype: torch.dtype,
) -> Codes | None:
    if tensor.type_name not in GGUF_TYPES:
        return None
    rows = stored_rows(gguf, config, tensor)
    if rows is None:
        return None
    codes = gguf_codes(tensor.type_name, torch.from_numpy(np.array(rows)).to(device))

    def weight(index: torch.Tensor) -> torch.Tensor:
        shape = (len(index), tensor.shape[1])
        chosen = GgufTensor(tensor.name, tensor.type_name, shape, rows[index.numpy()])
        return torch.from_numpy(dequantize(chosen))

    check_product(CodedLinear([codes], None, Scratch(device, dtype), dtype), weight, tensor.name)
    return codes


@torch.no_grad()
def check_product(
    layer: CodedLinear, weight: Callable[[torch.Tensor], torch.Tensor], name: str
) -> None:
    """Compare products of a layer without a bias with those of a few rows of its weight.

    `weight` returns the rows of an index int64[r], float32[r, k], on the CPU and without our
    kernels. Each kernel that serving can use is run. Raises `UnsupportedModelError` with the name
    if they differ.
    """
    from stonechat_models.backends.quantization.codes.code_products import KERNEL_ROWS

    compile_products([layer])
    device, dtype = layer.weight.device, layer.weight.dtype
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(layer.out_features, (CHECKED_ROWS,), generator=generator)
    rows = weight(index).double()
    for size in KERNEL_ROWS:
        x = torch.randn(size, layer.in_features, generator=generator).to(dtype)
        actual = layer(x.to(device)).cpu()[:, index].double()
        expected = x.double() @ rows.T
        error = float((actual - expected).norm() / expected.norm().clamp(min=1e-30))
        if not error <= PRODUCT_TOLERANCE[dtype]:
            kinds = ", ".join(sorted({part.format.name for part in layer.parts}))
            raise UnsupportedModelError(
                f"the product of {name} with {kinds} codes is off by {error:.2g}"
            )


def as_weights(
    parameters: Iterable[tuple[str, Values]], dtype: torch.dtype
) -> dict[str, LazyWeight]:
    """Return parameters as tensors of `dtype`, by their names. Each is read when it is loaded."""

    def read(values: Values) -> torch.Tensor:
        return torch.from_numpy(np.require(values(), np.float32, ["C", "W"])).to(dtype)

    return {name: LazyWeight(partial(read, values)) for name, values in parameters}


def is_replaceable(module: nn.Module) -> bool:
    """Whether this is a linear layer, or an embedding that does no more than scale its rows."""
    if type(module) in (nn.Linear, nn.Embedding):
        return True
    return isinstance(module, nn.Embedding) and hasattr(module, "scalar_embed_scale")


def _tied_head(empty: nn.Module, embedding: nn.Embedding) -> str | None:
    """The name of the head that shares the weight of an embedding, if there is one.

    A model may have embeddings that share none: of positions, or for each layer.
    """
    head = empty.get_output_embeddings()  # type: ignore[operator]
    if type(head) is not nn.Linear or head.bias is not None:
        return None
    if head.weight is not embedding.weight:
        return None
    return next(name for name, module in empty.named_modules() if module is head)
