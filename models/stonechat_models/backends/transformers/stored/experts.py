"""Keeps the quantised experts of a mixture as they are stored: in GGUF files, or in folders."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from stonechat_models.backends.quantization.codes.codes import PRODUCT_TOLERANCE, Codes, joined
from stonechat_models.backends.quantization.codes.float_codes import float4_codes
from stonechat_models.backends.quantization.codes.gguf_codes import GGUF_TYPES, gguf_codes
from stonechat_models.backends.transformers.fused.moe.coded_experts import CodedExpertLinear, Rows
from stonechat_models.backends.transformers.fused.moe.experts import FusedExperts, tiles_of
from stonechat_models.backends.transformers.fused.moe.recognise_experts import (
    activation_of,
    is_experts,
)
from stonechat_models.backends.transformers.stored.packed_codes import codes_of
from stonechat_models.checkpoint.gguf.config import architecture_of
from stonechat_models.checkpoint.gguf.names import whole_name
from stonechat_models.checkpoint.gguf.reader import GgufFile, GgufTensor
from stonechat_models.checkpoint.gguf.weights import dequantize
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.checkpoint.packed.tensors import PackedTensor, Read
from stonechat_models.errors import UnsupportedModelError

Products = Callable[[int], list[tuple[torch.Tensor, torch.Tensor | None]]]
"""The float matrix [N, K] of an expert and its bias [N], if it has one: first of gates and their
counterparts in the order of the activation, then of down."""
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def gguf_experts(
    gguf: GgufFile, config: HFConfig, empty: nn.Module, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, FusedExperts, list[GgufTensor]]]:
    """Yield the modules to replace, their replacements, and the tensors that these hold.

    `empty` is on the meta device. Raises `UnsupportedModelError` if a product is wrong.
    """
    prefix = whole_name(config, architecture_of(gguf).layer_prefix)
    for name, module in empty.named_modules():
        if not is_experts(module) or not name.startswith(f"{prefix}."):
            continue
        layer = name.removeprefix(f"{prefix}.").partition(".")[0]
        stored = _experts_of_layer(gguf, layer)
        if stored is None or not _fits(module, [t.shape for t in stored[:3]]):
            continue
        fused = _gguf_replacement(module, stored, dtype, device)
        if fused is not None:
            yield name, fused, stored


def _experts_of_layer(gguf: GgufFile, layer: str) -> list[GgufTensor] | None:
    """Gates, their counterparts and down, then their biases if there are any."""
    bases = [f"blk.{layer}.ffn_{part}_exps" for part in ("gate", "up", "down")]
    weights = [gguf.tensors.get(f"{base}.weight") for base in bases]
    found = [tensor for tensor in weights if tensor is not None]
    if len(found) < 3 or any(tensor.type_name not in GGUF_TYPES for tensor in found):
        return None
    biases = [gguf.tensors[f"{base}.bias"] for base in bases if f"{base}.bias" in gguf.tensors]
    return [*found, *biases] if len(biases) in (0, 3) else None


def _fits(module: Any, shapes: list[tuple[int, ...]]) -> bool:
    """Whether the module has a gate, and matrices of these shapes."""
    if not module.has_gate or any(len(shape) != 3 for shape in shapes):
        return False
    up, down = module.gate_up_proj.shape, module.down_proj.shape
    if module.is_transposed:
        up, down = (up[0], up[2], up[1]), (down[0], down[2], down[1])
    gate, other, last = shapes
    return gate == other and tuple(up) == (gate[0], 2 * gate[1], gate[2]) and tuple(down) == last


def _gguf_replacement(
    module: nn.Module, stored: list[GgufTensor], dtype: torch.dtype, device: torch.device
) -> FusedExperts | None:
    gate, up, down = (_gguf_codes(tensor, device) for tensor in stored[:3])
    activation = activation_of(module, device)
    if activation is None or not gate.can_join(up):
        return None
    biases = [torch.from_numpy(dequantize(tensor)).to(device, dtype) for tensor in stored[3:]]
    up_bias, down_bias = (torch.cat(biases[:2], dim=1), biases[2]) if biases else (None, None)
    experts = stored[0].shape[0]
    fused = FusedExperts(
        CodedExpertLinear(joined([gate, up]), experts, up_bias, dtype, Rows.APART),
        CodedExpertLinear(down, experts, down_bias, dtype),
        replace(activation, is_interleaved=False),
    )

    def products(expert: int) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        parts = [torch.from_numpy(dequantize(t, expert)) for t in stored]
        up_bias, down_bias = (torch.cat(parts[3:5]), parts[5]) if len(parts) > 3 else (None, None)
        return [(torch.cat(parts[:2]), up_bias), (parts[2], down_bias)]

    _check(stored[0].name, fused, products, dtype, device)
    return fused


def _gguf_codes(tensor: GgufTensor, device: torch.device) -> Codes:
    rows = np.array(tensor.data).reshape(-1, tensor.data.shape[-1])
    return gguf_codes(tensor.type_name, torch.from_numpy(rows).to(device))


def mxfp4_experts(
    tensors: Mapping[str, PackedTensor],
    read: Read,
    empty: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[tuple[str, FusedExperts, list[str]]]:
    """Yield the modules to replace, their replacements, and the names of what these hold.

    `tensors` are packed weights without a layout. `read` reads a stored tensor. Raises
    `UnsupportedModelError` if a product is wrong.
    """
    for name, module in empty.named_modules():
        names = [f"{name}.{part}" for part in ("gate_up_proj", "down_proj")]
        if not is_experts(module) or any(n not in tensors for n in names):
            continue
        activation = activation_of(module, device)
        if activation is None:
            continue
        parts = [[read(tensors[n].parts[role]) for role in ("blocks", "scales")] for n in names]
        biases = [read(f"{n}_bias") for n in names]
        experts = parts[0][0].shape[0]
        up, down = (
            CodedExpertLinear(
                mxfp4_codes(blocks, scales, device),
                experts,
                bias.to(device, dtype),
                dtype,
                Rows.PAIRS,
            )
            for (blocks, scales), bias in zip(parts, biases, strict=True)
        )
        fused = FusedExperts(up, down, activation)

        def products(
            expert: int, parts: Any = parts, biases: Any = biases
        ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
            return [
                (_mxfp4_floats(blocks[expert], scales[expert]), bias[expert])
                for (blocks, scales), bias in zip(parts, biases, strict=True)
            ]

        _check(name, fused, products, dtype, device)
        held = [stored for n in names for stored in (*tensors[n].parts.values(), f"{n}_bias")]
        yield name, fused, held


def packed_experts(
    tensors: Mapping[str, PackedTensor],
    read: Read,
    empty: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[tuple[str, FusedExperts, list[str]]]:
    """Yield the modules to replace, their replacements, and the names of what these hold.

    `tensors` are packed weights that can have codes. `read` reads a stored tensor. Raises
    `UnsupportedModelError` if a product is wrong.
    """
    for name, module in empty.named_modules():
        matrices = packed_matrices(name, module, tensors)
        activation = activation_of(module, device) if matrices is not None else None
        if matrices is None or activation is None:
            continue
        num_experts = len(matrices[0])
        up, down = (
            _joined_codes([t for expert in part for t in expert], read, device) for part in matrices
        )
        if up is None or down is None:
            continue
        fused = FusedExperts(
            CodedExpertLinear(up, num_experts, None, dtype),
            CodedExpertLinear(down, num_experts, None, dtype),
            activation,
        )

        def products(
            expert: int, matrices: Any = matrices
        ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
            return [(torch.cat([t.values(read) for t in part[expert]]), None) for part in matrices]

        _check(name, fused, products, dtype, device)
        yield name, fused, [t.name for part in matrices for expert in part for t in expert]


def packed_matrices(
    name: str, module: Any, tensors: Mapping[str, PackedTensor]
) -> list[list[list[PackedTensor]]] | None:
    """Of each expert the gate and its counterpart; and of each expert down. None: others.

    Only the headers of `tensors` are needed.
    """
    if not is_experts(module) or not module.has_gate or module.has_bias or module.is_transposed:
        return None
    experts, _, size = module.gate_up_proj.shape
    width = module.down_proj.shape[2]
    found: list[list[list[PackedTensor]]] = []
    shapes = {("gate_proj", "up_proj"): (width, size), ("down_proj",): (size, width)}
    for roles, shape in shapes.items():
        names = [[f"{name}.{i}.{role}.weight" for role in roles] for i in range(experts)]
        if any(n not in tensors or tensors[n].shape != shape for part in names for n in part):
            return None
        found.append([[tensors[n] for n in part] for part in names])
    return found


def _joined_codes(tensors: list[PackedTensor], read: Read, device: torch.device) -> Codes | None:
    """The codes of all matrices in order, or None if they cannot lie in one."""
    parts: list[Codes] = []
    for tensor in tensors:
        codes, order = codes_of(tensor, tensor.read(read), device)
        if codes is None or order is not None:
            return None
        parts.append(codes)
    return joined(parts) if all(parts[0].can_join(part) for part in parts) else None


def mxfp4_codes(blocks: torch.Tensor, scales: torch.Tensor, device: torch.device) -> Codes:
    """Codes of uint8 blocks [..., K / 32, 16] and exponents [..., K / 32]: a matrix of all rows."""
    flat = blocks.reshape(-1, blocks.shape[-2] * 16)
    codes = float4_codes(flat.to(device), scales.reshape(len(flat), -1).to(device), None)
    assert codes is not None
    return codes


def _mxfp4_floats(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Blocks [N, K / 32, 16] and exponents [N, K / 32] as float64[N, K]."""
    table = torch.tensor([*FP4, *(-value for value in FP4)], dtype=torch.float64)
    values = table[torch.stack([blocks & 15, blocks >> 4], dim=-1).long()].flatten(2)
    return (values * torch.exp2(scales.double() - 127)[..., None]).flatten(1)


@torch.no_grad()
def _check(
    name: str,
    fused: FusedExperts,
    products: Products,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Compare outputs of the first and the last expert with those of float matrices.

    A single token and each tile of several tokens are run, since each has a kernel of its own.
    """
    experts, _, size = fused.up.shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, size, generator=generator).to(dtype)
    ids = torch.tensor([[0], [experts - 1]])
    expected = []
    for row, expert in zip(x.double(), ids.flatten().tolist(), strict=True):
        up, down = products(expert)
        expected.append(_product(fused.activation(_product(row, *up)), *down))
    exact = torch.stack(expected)
    ones = torch.ones(2, 1, dtype=dtype, device=device)
    rows, chosen = x.to(device), ids.to(device)
    together = [fused(rows, chosen, ones, tile) for tile in tiles_of(dtype).values()]
    for output in (fused(rows[:1], chosen[:1], ones[:1]), *together):
        target = exact[: len(output)]
        error = (output.cpu().double() - target).norm() / target.norm().clamp(min=1e-30)
        if not float(error) <= PRODUCT_TOLERANCE[dtype]:
            raise UnsupportedModelError(f"the experts of {name} as stored are off by {error:.2g}")


def _product(x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product = matrix.double() @ x
    return product if bias is None else product + bias.double()
