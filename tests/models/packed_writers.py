"""Writes tiny models in packed formats, by the formats' published rules.

Each writer takes a matrix float32[n, k]. It returns the stored tensors by the ends of their names,
and the float32 values that they stand for, computed from the numbers before they are packed.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.models.backends.native import native_helpers
from tests.models.tiny_tokenizers import byte_level_backend

Written = tuple[dict[str, torch.Tensor], np.ndarray]
Writer = Callable[[np.ndarray], Written]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def words(values: np.ndarray, bits: int) -> torch.Tensor:
    """Pack the last axis as a stream of bits, the lowest first, into int32."""
    flat = values.reshape(-1, values.shape[-1]).astype(np.uint8)
    stream = ((flat[..., None] >> np.arange(bits)) & 1).reshape(len(flat), -1)
    stream = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
    packed = np.packbits(stream, axis=1, bitorder="little").copy().view(np.int32)
    return torch.from_numpy(packed.reshape(*values.shape[:-1], -1))


def quantised(
    weight: np.ndarray, bits: int, group_of: np.ndarray, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return integers [n, k], scales float16[n, groups], and zeros [n, groups]."""
    n, _ = weight.shape
    top, num_groups = (1 << bits) - 1, int(group_of.max()) + 1
    scales = np.empty((n, num_groups), dtype=np.float16)
    zeros = np.full((n, num_groups), 1 << (bits - 1))
    for g in range(num_groups):
        part = weight[:, group_of == g]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            scales[:, g] = 2 * np.maximum(-low, high) / top
        else:
            scales[:, g] = (high - low) / top
            zeros[:, g] = np.clip(np.rint(-low / scales[:, g]), 0, top)
    wide = scales.astype(np.float32)[:, group_of]
    values = np.clip(np.rint(weight / wide) + zeros[:, group_of], 0, top)
    return values.astype(np.int64), scales, zeros


def numbers(
    values: np.ndarray, scales: np.ndarray, zeros: np.ndarray, group_of: np.ndarray
) -> np.ndarray:
    integers = (values - zeros[:, group_of]).astype(np.float32)
    return integers * scales.astype(np.float32)[:, group_of]


def runs(k: int, group: int) -> np.ndarray:
    return np.arange(k) // (group if group > 0 else k)


def gptq(
    bits: int = 4,
    group: int = 32,
    *,
    symmetric: bool = True,
    version: int = 1,
    act_order: bool = False,
    has_order: bool = True,
) -> Writer:
    def write(weight: np.ndarray) -> Written:
        group_of = runs(weight.shape[1], group)
        if act_order:
            group_of = np.random.default_rng(1).permutation(group_of)
        values, scales, zeros = quantised(weight, bits, group_of, symmetric)
        stored = (zeros.T - 1) % (1 << bits) if version == 1 else zeros.T
        tensors = {
            "qweight": words(values, bits).T.contiguous(),
            "qzeros": words(stored, bits),
            "scales": torch.from_numpy(scales.T.copy()),
        }
        if has_order:
            tensors["g_idx"] = torch.from_numpy(group_of.astype(np.int32))
        return tensors, numbers(values, scales, zeros, group_of)

    return write


def awq(group: int = 32) -> Writer:
    def pack(values: np.ndarray) -> torch.Tensor:
        ordered = values.reshape(len(values), -1, 8)[:, :, list(AWQ_ORDER)]
        return words(ordered.reshape(len(values), -1), 4)

    def write(weight: np.ndarray) -> Written:
        group_of = runs(weight.shape[1], group)
        values, scales, zeros = quantised(weight, 4, group_of, False)
        tensors = {
            "qweight": pack(values.T),
            "qzeros": pack(zeros.T),
            "scales": torch.from_numpy(scales.T.copy()),
        }
        return tensors, numbers(values, scales, zeros, group_of)

    return write


def pack_quantized(
    bits: int = 4, group: int = 32, *, symmetric: bool = True, act_order: bool = False
) -> Writer:
    def write(weight: np.ndarray) -> Written:
        group_of = runs(weight.shape[1], group)
        if act_order:
            group_of = np.random.default_rng(1).permutation(group_of)
        values, scales, zeros = quantised(weight, bits, group_of, symmetric)
        tensors = {
            "weight_packed": words(values, bits),
            "weight_scale": torch.from_numpy(scales),
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            tensors["weight_zero_point"] = words(zeros.T, bits).T.contiguous()
        if act_order:
            tensors["weight_g_idx"] = torch.from_numpy(group_of.astype(np.int32))
        return tensors, numbers(values, scales, zeros, group_of)

    return write


def int8(*, symmetric: bool = True) -> Writer:
    def write(weight: np.ndarray) -> Written:
        group_of = runs(weight.shape[1], 0)
        values, scales, zeros = quantised(weight, 8, group_of, symmetric)
        tensors = {
            "weight": torch.from_numpy((values - 128).astype(np.int8)),
            "weight_scale": torch.from_numpy(scales),
        }
        if not symmetric:
            tensors["weight_zero_point"] = torch.from_numpy((zeros - 128).astype(np.int8))
        return tensors, numbers(values, scales, zeros, group_of)

    return write


def e4m3_values(stored: torch.Tensor) -> np.ndarray:
    """The values of float8 numbers: a sign, four bits of exponent, three of mantissa."""
    code = stored.view(torch.uint8).numpy().astype(np.int64)
    exponent, mantissa = (code >> 3) & 15, (code & 7) / 8
    size = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7.0))
    return (np.where(code & 128, -size, size)).astype(np.float32)


def fp8(block: tuple[int, int] | None = (128, 128), scale_name: str = "weight_scale_inv") -> Writer:
    """`block`: the weights that share a scale; None: all of the matrix, with a scalar."""

    def write(weight: np.ndarray) -> Written:
        n, k = weight.shape
        rows, columns = block or (n, k)
        rows, columns = min(rows, n), min(columns, k)
        row, column = np.arange(n) // rows, np.arange(k) // columns
        scale = np.empty((row[-1] + 1, column[-1] + 1), dtype=np.float32)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                scale[i, j] = np.abs(weight[row == i][:, column == j]).max() / 448
        wide = scale[row][:, column]
        stored = torch.from_numpy(weight / wide).to(torch.float8_e4m3fn)
        tensor = torch.from_numpy(scale if block else scale.reshape(()))
        return {"weight": stored, scale_name: tensor}, e4m3_values(stored) * wide

    return write


def mxfp8() -> Writer:
    """float8 in groups of 32 with a power of two as their scale."""

    def write(weight: np.ndarray) -> Written:
        n, k = weight.shape
        exponent = np.ceil(np.log2(np.abs(weight.reshape(n, k // 32, 32)).max(-1) / 448))
        wide = np.repeat(np.exp2(exponent), 32, axis=1).astype(np.float32)
        stored = torch.from_numpy(weight / wide).to(torch.float8_e4m3fn)
        scale = torch.from_numpy((exponent + 127).astype(np.uint8))
        return {"weight": stored, "weight_scale_inv": scale}, e4m3_values(stored) * wide

    return write


def fp4_codes(weight: np.ndarray) -> np.ndarray:
    return np.abs(weight[..., None] - E2M1).argmin(-1).astype(np.uint8)


def fp4_bytes(codes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(codes[:, ::2] | (codes[:, 1::2] << 4))


def nvfp4(writer: str = "modelopt") -> Writer:
    """Groups of 16 with a scale in e4m3, times a second scale of the whole matrix."""

    def write(weight: np.ndarray) -> Written:
        n, k = weight.shape
        top = np.abs(weight.reshape(n, k // 16, 16)).max(-1)
        second = np.float32(top.max() / 6 / 448)
        scale = torch.from_numpy(top / 6 / second).to(torch.float8_e4m3fn)
        wide = np.repeat(e4m3_values(scale) * second, 16, axis=1)
        codes = fp4_codes(weight / np.maximum(wide, 1e-9))
        packed = fp4_bytes(codes)
        if writer == "modelopt":
            tensors = {"weight": packed, "weight_scale_2": torch.tensor(second)}
        else:
            tensors = {"weight_packed": packed, "weight_global_scale": torch.tensor([1 / second])}
        return tensors | {"weight_scale": scale}, E2M1[codes] * wide

    return write


def mxfp4() -> Writer:
    """Groups of 32 with a power of two as their scale."""

    def write(weight: np.ndarray) -> Written:
        n, k = weight.shape
        top = np.abs(weight.reshape(n, k // 32, 32)).max(-1)
        exponent = np.ceil(np.log2(top / 6))
        wide = np.repeat(np.exp2(exponent), 32, axis=1).astype(np.float32)
        codes = fp4_codes(weight / wide)
        scale = torch.from_numpy((exponent + 127).astype(np.uint8))
        return {"weight_packed": fp4_bytes(codes), "weight_scale": scale}, E2M1[codes] * wide

    return write


def bnb4(*, nested: bool = False) -> Writer:
    """Blocks of 64 of the flat weights; the first of two is in the high half of a byte."""
    table = np.sort(np.random.default_rng(3).uniform(-1, 1, 16)).astype(np.float32)

    def write(weight: np.ndarray) -> Written:
        flat = weight.reshape(-1, 64)
        absmax = np.abs(flat).max(1)
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32"}
        state["shape"] = list(weight.shape)
        tensors = {"weight.quant_map": torch.from_numpy(table.copy())}
        if nested:
            inner = np.linspace(-1, 1, 256).astype(np.float32)
            offset = float(absmax.mean())
            blocks = np.pad(absmax - offset, (0, -len(absmax) % 256)).reshape(-1, 256)
            outer = np.abs(blocks).max(1).astype(np.float32)
            codes = np.abs((blocks / outer[:, None])[..., None] - inner).argmin(-1)
            absmax = (inner[codes] * outer[:, None]).reshape(-1)[: len(absmax)] + offset
            tensors["weight.absmax"] = torch.from_numpy(
                codes.reshape(-1)[: len(absmax)].astype(np.uint8)
            )
            tensors["weight.nested_absmax"] = torch.from_numpy(outer)
            tensors["weight.nested_quant_map"] = torch.from_numpy(inner)
            state |= {"nested_blocksize": 256, "nested_offset": offset}
        else:
            tensors["weight.absmax"] = torch.from_numpy(absmax.astype(np.float32))
        absmax = absmax.astype(np.float32)[:, None]
        codes = np.abs((flat / absmax)[..., None] - table).argmin(-1).astype(np.uint8)
        pairs = codes.reshape(-1, 2)
        tensors["weight"] = torch.from_numpy((pairs[:, 0] << 4) | pairs[:, 1])[:, None].contiguous()
        text = np.frombuffer(json.dumps(state).encode(), dtype=np.uint8)
        tensors["weight.quant_state.bitsandbytes__nf4"] = torch.from_numpy(text.copy())
        return tensors, (table[codes] * absmax).reshape(weight.shape)

    return write


def bnb8() -> Writer:
    def write(weight: np.ndarray) -> Written:
        top = np.abs(weight).max(1).astype(np.float32)
        codes = np.rint(weight * (127 / top[:, None])).astype(np.int8)
        tensors = {"weight": torch.from_numpy(codes), "SCB": torch.from_numpy(top)}
        return tensors, codes.astype(np.float32) * (top / np.float32(127))[:, None]

    return write


def mlx(bits: int = 4, group: int = 32) -> Writer:
    """Integers in uint32, times a scale, plus a bias that need be no multiple of it."""

    def write(weight: np.ndarray) -> Written:
        n, k = weight.shape
        groups = weight.reshape(n, k // group, group)
        bias = groups.min(-1).astype(np.float16)
        scale = (np.ptp(groups, axis=-1) / ((1 << bits) - 1)).astype(np.float16)
        wide_scale, wide_bias = (
            np.repeat(factor.astype(np.float32), group, axis=1) for factor in (scale, bias)
        )
        values = np.clip(np.rint((weight - wide_bias) / wide_scale), 0, (1 << bits) - 1)
        tensors = {
            "weight": words(values, bits).view(torch.uint32),
            "scales": torch.from_numpy(scale),
            "biases": torch.from_numpy(bias),
        }
        return tensors, values.astype(np.float32) * wide_scale + wide_bias

    return write


def compressed(kind: str, **weights: Any) -> dict[str, Any]:
    """The `quantization_config` of compressed-tensors with one group."""
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": group},
    }


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def is_linear_or_expert(name: str) -> bool:
    return is_linear(name) or ".experts." in name


def quantise_config(folder: Path, quantization: dict[str, Any]) -> None:
    """Write a `quantization_config` into the folder's config.json."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), "quantization_config": quantization}
    path.write_text(json.dumps(config))


def save_packed(
    folder: Path,
    family: str,
    writer: Writer,
    quantization: dict[str, Any],
    packs: Callable[[str], bool] = is_linear,
    **changes: Any,
) -> dict[str, torch.Tensor]:
    """Save a tiny model of a compiled family; `packs` chooses the weights that `writer` writes.

    `folder` / "float" gets the same model with the float32 values. Returns these, by name.
    """
    native_helpers.make_model(family, folder, **{"num_hidden_layers": 2, **changes})
    byte_level_backend().save(str(folder / "tokenizer.json"))
    floats = load_file(folder / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in floats.items():
        if not packs(name):
            stored[name] = tensor
            continue
        tensors, values = writer(tensor.numpy())
        stored |= {f"{name.removesuffix('.weight')}.{end}": t for end, t in tensors.items()}
        floats[name] = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    (folder / "float").mkdir()
    for path in folder.glob("*.json"):
        shutil.copy(path, folder / "float")
    metadata = {"format": "pt"}
    save_file(floats, folder / "float" / "model.safetensors", metadata)
    save_file(
        {n: t.contiguous() for n, t in stored.items()}, folder / "model.safetensors", metadata
    )
    quantise_config(folder, quantization)
    return floats


def stack_experts(folder: Path) -> None:
    """Store all experts of a layer in one tensor, as mlx-lm does."""
    path = folder / "model.safetensors"
    stored = load_file(path)
    experts: dict[str, list[torch.Tensor]] = {}
    names = sorted((n for n in stored if ".experts." in n), key=lambda n: int(n.split(".")[5]))
    for name in names:
        before, _, after = name.partition(".experts.")
        stacked = f"{before}.switch_mlp.{after.partition('.')[2]}"
        experts.setdefault(stacked, []).append(stored.pop(name))
    save_file(stored | {name: torch.stack(parts) for name, parts in experts.items()}, path)


def order_like_mlx(folder: Path) -> None:
    """Store convolutions with channels last. Beside those of linear attention norms have 1 + w."""
    path = folder / "model.safetensors"
    stored = load_file(path)
    has_sums = any(name.endswith("linear_attn.conv1d.weight") for name in stored)
    for name, tensor in stored.items():
        if tensor.dim() == 3:
            stored[name] = tensor.transpose(1, 2).contiguous()
        elif has_sums and "norm" in name and "linear_attn" not in name:
            stored[name] = tensor + 1
    save_file(stored, path)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
GROUPS = {"strategy": "group", "group_size": 32}
CASES: dict[str, tuple[Writer, dict[str, Any], str]] = {
    "gptq": (gptq(), GPTQ, "INT4_SYM"),
    "gptq-asym": (gptq(symmetric=False), {**GPTQ, "sym": False}, "INT4"),
    "gptq-v2": (
        gptq(symmetric=False, version=2),
        {**GPTQ, "sym": False, "checkpoint_format": "gptq_v2"},
        "INT4",
    ),
    "gptq-order": (gptq(act_order=True), {**GPTQ, "desc_act": True}, "INT4_IRREGULAR"),
    "gptq-channel": (
        gptq(group=-1, has_order=False),
        {**GPTQ, "group_size": -1, "desc_act": True},
        "INT4_SYM",
    ),
    "gptq-2": (gptq(2, symmetric=False), {**GPTQ, "bits": 2, "sym": False}, "INT2"),
    "gptq-3": (gptq(3, symmetric=False), {**GPTQ, "bits": 3, "sym": False}, "INT3"),
    "gptq-8": (gptq(8), {**GPTQ, "bits": 8}, "INT8"),
    "gptq-16": (gptq(group=16), {**GPTQ, "group_size": 16}, "INT4_IRREGULAR"),
    "auto-round": (
        gptq(has_order=False),
        {**GPTQ, "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"},
        "INT4_SYM",
    ),
    "awq": (awq(), AWQ, "INT4"),
    "w4a16": (pack_quantized(), compressed("pack-quantized", num_bits=4, **GROUPS), "INT4_SYM"),
    "w4a16-asym": (
        pack_quantized(symmetric=False),
        compressed("pack-quantized", num_bits=4, symmetric=False, **GROUPS),
        "INT4",
    ),
    "w4a16-order": (
        pack_quantized(act_order=True),
        compressed("pack-quantized", num_bits=4, actorder="group", **GROUPS),
        "INT4_IRREGULAR",
    ),
    "w8a16": (
        pack_quantized(8, -1),
        compressed("pack-quantized", num_bits=8, strategy="channel", group_size=None),
        "INT8",
    ),
    "w8a8": (int8(), compressed("int-quantized", num_bits=8, strategy="channel"), "INT8"),
    "w8a8-asym": (
        int8(symmetric=False),
        compressed("int-quantized", num_bits=8, strategy="channel", symmetric=False),
        "INT8",
    ),
    "fp8-block": (fp8(), FP8, "FP8"),
    "fp8-tensor": (fp8(None), {"quant_method": "fp8", "activation_scheme": "static"}, "FP8"),
    "fp8-channel": (
        fp8((1, 1 << 20), "weight_scale"),
        compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        "FP8",
    ),
    "fp8-modelopt": (
        fp8(None, "weight_scale"),
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        "FP8",
    ),
    "mxfp8": (mxfp8(), {"quant_method": "mxfp8", "weight_block_size": [1, 32]}, "FP8"),
    "nvfp4-modelopt": (nvfp4(), {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
    "nvfp4": (
        nvfp4("compressed-tensors"),
        compressed("nvfp4-pack-quantized", num_bits=4, type="float", group_size=16),
        "NVFP4",
    ),
    "mxfp4": (
        mxfp4(),
        compressed("mxfp4-pack-quantized", num_bits=4, type="float", group_size=32),
        "MXFP4",
    ),
    **{
        f"mlx-{bits}": (mlx(bits), {"group_size": 32, "bits": bits}, f"INT{bits}")
        for bits in (2, 3, 4, 5, 6, 8)
    },
    "bnb-nf4": (bnb4(), {"quant_method": "bitsandbytes", "load_in_4bit": True}, "NF4"),
    "bnb-nested": (bnb4(nested=True), {"quant_method": "bitsandbytes"}, "NF4"),
    "bnb-8": (bnb8(), {"quant_method": "bitsandbytes", "load_in_8bit": True}, "INT8"),
}
"""For each format: how it is written, what its config says, and the type that it is read as."""
