"""Keeps the packed weights of safetensors folders as they are stored: see `packed_codes`."""

from typing import Any

import torch
from torch import nn

from stonechat_models.backends.quantization.codes.coded_linear import CodedLinear
from stonechat_models.backends.quantization.scratch import Scratch
from stonechat_models.backends.transformers.stored.codes import (
    CodedParts,
    check_product,
    is_replaceable,
)
from stonechat_models.backends.transformers.stored.packed_codes import can_have_codes, codes_of
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.packed.folder import read_packing, reader_of, stored_files
from stonechat_models.checkpoint.packed.tensors import PackedTensor, Packing, Read
from stonechat_models.checkpoint.resolve import ModelFiles


def has_groups(packing: Packing) -> bool:
    """Whether `read_groups` can read some of the packed weights."""
    return bool(_kept(packing))


def names_in_groups(packing: Packing, empty: nn.Module) -> frozenset[str]:
    """The names of the weights that `read_groups` keeps, as far as the headers tell."""
    from stonechat_models.backends.transformers.stored.experts import packed_matrices

    tensors = _kept(packing)
    names = {f"{name}.weight" for name, part in empty.named_modules() if is_replaceable(part)}
    names &= tensors.keys()
    for name, part in empty.named_modules():
        for matrix in packed_matrices(name, part, tensors) or ():
            names |= {tensor.name for expert in matrix for tensor in expert}
    return frozenset(names)


def _kept(packing: Packing) -> dict[str, PackedTensor]:
    if not packing.is_read_here:
        return {}
    return {name: t for name, t in packing.tensors.items() if can_have_codes(t)}


def read_groups(
    files: ModelFiles,
    empty: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> CodedParts:
    """Read linear layers, embeddings and experts of `empty`, on the meta device, as codes.

    The codes are on `device`. Those whose numbers the kernels do not have are left out, and so are
    all other weights. Raises `UnsupportedModelError` if a product is wrong, and what
    `PackedTensor.read` raises.
    """
    from stonechat_models.backends.transformers.stored.experts import packed_experts

    parts, scratch, packing = CodedParts(), Scratch(device, dtype), read_packing(files)
    layers = dict[str, Any](empty.named_modules())
    with stored_files(files) as stored:
        kept, read = _kept(packing), reader_of(stored)
        for name, experts, held in packed_experts(kept, read, empty, dtype, device):
            progress(f"loading {files.name}: {name}")
            parts.modules[name] = experts
            parts.held |= set(held)
        for i, (target, tensor) in enumerate(kept.items()):
            if i % 100 == 0:
                progress(f"loading {files.name}: weight {i + 1} of {len(kept)}")
            name = target.removesuffix(".weight")
            old = layers.get(name)
            if old is None or not is_replaceable(old):
                continue
            linear = _linear(tensor, read, old, scratch, dtype, device)
            if linear is None:
                continue
            if isinstance(old, nn.Linear):
                parts.modules[name] = linear
            elif linear.order is None:
                parts.add_embedding(name, linear, empty)
    return parts


def _linear(
    tensor: PackedTensor,
    read: Read,
    old: Any,
    scratch: Scratch,
    dtype: torch.dtype,
    device: torch.device,
) -> CodedLinear | None:
    layout, stored = tensor.layout, tensor.read(read)
    assert layout is not None
    if (layout.stored_shape(stored) or tensor.shape) != old.weight.shape:
        return None
    codes, order = codes_of(tensor, stored, device)
    if codes is None:
        return None

    def weight(rows: torch.Tensor) -> torch.Tensor:
        return layout.floats(stored, rows)

    check_product(CodedLinear([codes], None, scratch, dtype, order), weight, tensor.name)
    bias = old.bias if isinstance(old, nn.Linear) else None
    return CodedLinear([codes], bias, scratch, dtype, order)
