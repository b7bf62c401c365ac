"""Finds the packed weights among a model's stored tensors, by the names and types of their parts.

It needs the headers only, so that a plan and a load agree. Where a config may be wrong about the
data, a load looks at the data.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from stonechat_models.checkpoint.packed.bitsandbytes import TableLayout, read_state
from stonechat_models.checkpoint.packed.floats import Fp4, Fp8
from stonechat_models.checkpoint.packed.gptq_awq import gptq_or_awq
from stonechat_models.checkpoint.packed.integers import Int8, PackedIntegers
from stonechat_models.checkpoint.packed.layouts import GROUP, MisfitError, block_size, scale_grid
from stonechat_models.checkpoint.packed.method import Method
from stonechat_models.checkpoint.packed.mlx import LANGUAGE_MODEL, mlx_weights
from stonechat_models.checkpoint.packed.stored import StoredTensors, check_fit, integer_type
from stonechat_models.checkpoint.packed.tensors import PackedTensor, Packing, Read

if TYPE_CHECKING:
    from stonechat_models.checkpoint.headers import TensorHeader

FP8_TYPES = ("F8_E4M3", "F8_E5M2")
EXPONENT_TYPES = ("U8", "F8_E8M0")
"""The types of scales that are powers of two."""
PACKED_TYPES = frozenset((*FP8_TYPES, "I8", "U8", "I32", "U32", "F4"))
SCALE_ENDS = ("_scale_inv", "_scale")
SIDE_NAMES = frozenset(
    {
        *("input_scale", "input_scale_inv", "input_global_scale", "input_zero_point"),
        *("activation_scale", "activation_scale_inv", "output_scale", "weight_format"),
        *("k_scale", "v_scale", "q_scale", "prob_scale"),
    }
)
"""The last names of scales of activations and of cached keys, which weights do without."""
SIDE_ENDS = ("_activation_scale", "_activation_scale_inv", "_input_scale")


def find_packed(
    model: str, method: Method, tensors: Iterable["TensorHeader"], read: Read | None = None
) -> Packing:
    """Return the packed weights among the stored `tensors` of `model`.

    Without `read`, the config is believed about zeros and the order of columns. Raises
    `ModelLoadError` if a part is missing or misshapen, and `UnsupportedModelError` with the name
    of a format that is not read.
    """
    stored = StoredTensors(model, method, {tensor.name: tensor for tensor in tensors}, read)
    if not method.is_read_here:
        experts = _experts_of_mxfp4(stored) if method.name == "mxfp4" else ()
        return _packing(method.label, False, experts)
    packing = _packing(method.label, True, _weights(stored))
    names = stored.headers.keys()
    consumed, biases = set(packing.consumed), frozenset[str]()
    if packing.tensors:
        consumed |= {name for name in names if _is_side(name)}
        layers = {name.removesuffix(".weight") for name in packing.tensors}
        biases = frozenset(f"{layer}.bias" for layer in layers) & names
    _refuse_rest(stored, consumed)
    if method.name == "mlx" and any(name.startswith(LANGUAGE_MODEL) for name in names):
        packing = replace(packing, has_own_names=True)
    return replace(packing, consumed=frozenset(consumed), spare_biases=biases)


def _packing(label: str, is_read_here: bool, found: Iterable[PackedTensor]) -> Packing:
    tensors = {tensor.name: tensor for tensor in found}
    label = label or next((tensor.type_name for tensor in tensors.values()), "")
    consumed = frozenset(name for tensor in tensors.values() for name in tensor.parts.values())
    return Packing(label, is_read_here, tensors, consumed)


def _is_side(name: str) -> bool:
    return name.rpartition(".")[2] in SIDE_NAMES or name.endswith(SIDE_ENDS)


def _weights(stored: StoredTensors) -> Iterator[PackedTensor]:
    if stored.method.name == "mlx":
        yield from mlx_weights(stored)
        return
    for name, tensor in stored.headers.items():
        try:
            found = _weight_of(stored, tensor)
        except MisfitError as error:
            raise stored.misfit(name) from error
        if found is not None:
            yield found


def _weight_of(stored: StoredTensors, tensor: "TensorHeader") -> PackedTensor | None:
    """Return the weight whose first part is this tensor. None: it is not a first part."""
    base, _, last = tensor.name.rpartition(".")
    if last == "qweight":
        return gptq_or_awq(stored, base)
    if last == "weight_packed":
        return _compressed(stored, base)
    if last == "weight" and tensor.type_name == "U8":
        return _bytes(stored, base)
    if last == "weight" and tensor.type_name == "I8":
        return _int8(stored, base)
    if tensor.type_name in FP8_TYPES and not tensor.name.endswith(SCALE_ENDS):
        return _fp8(stored, tensor)
    return None


def _refuse_rest(stored: StoredTensors, consumed: set[str]) -> None:
    """Refuse weights that are packed and were not recognised."""
    for name, tensor in stored.headers.items():
        if name.endswith(".pre_quant_scale"):
            raise stored.refusal(f"with scales of inputs: {name}")
        is_weight = name.endswith("weight") and len(tensor.shape) > 1
        if is_weight and tensor.type_name in PACKED_TYPES and name not in consumed:
            raise stored.refusal(f"that is not read: {name} has the type {tensor.type_name}")


def _compressed(stored: StoredTensors, base: str) -> PackedTensor:
    """One of the packed formats of compressed-tensors, by the type of the packed weights."""
    name = f"{base}.weight_packed"
    packed = stored.headers[name]
    check_fit(len(packed.shape) == 2)
    if packed.type_name == "U8":
        return _fp4(stored, base, name, {"global_scale": f"{base}.weight_global_scale"})
    stored.refuse_words(name)
    optional = ("weight_zero_point", "weight_shape", "weight_g_idx")
    parts = {role: f"{base}.{role}" for role in ("weight_packed", "weight_scale")}
    parts = stored.parts(parts, {role: f"{base}.{role}" for role in optional})
    bits, size = stored.method.bits_of(base), stored.method.group_size_of(base)
    layout = PackedIntegers(bits, size)
    shape, run, num_spare = _compressed_shape(stored, parts, layout)
    is_regular = "weight_g_idx" not in parts and run % GROUP == shape[1] % GROUP == 0
    type_name = integer_type(bits, is_regular, "weight_zero_point" not in parts)
    name = f"{base}.weight"
    return PackedTensor(name, type_name, shape, parts, layout, num_spare=num_spare, run=run)


def _compressed_shape(
    stored: StoredTensors, parts: dict[str, str], layout: PackedIntegers
) -> tuple[tuple[int, int], int, int]:
    """Return the shape, how many columns share a scale, and `PackedTensor.num_spare`.

    The last word of a row may have unused bits. The headers tell only how many words there are.
    """
    n, num_words = stored.shape(parts["weight_packed"])
    scales, block = stored.shape(parts["weight_scale"]), (0, layout.group_size)
    most = num_words * 32 // layout.bits
    least = most
    if "weight_shape" in parts:
        least = (num_words - 1) * 32 // layout.bits + 1
        if stored.read is not None:
            roles = ("weight_packed", "weight_shape")
            shape = layout.stored_shape({role: stored.read(parts[role]) for role in roles})
            assert shape is not None
            least = most = shape[1]
    for k in range(most, least - 1, -1):
        with suppress(MisfitError):
            return (n, k), scale_grid((n, k), scales, block)[2], k - least
    raise MisfitError


def _bytes(stored: StoredTensors, base: str) -> PackedTensor | None:
    """NVFP4 of ModelOpt, or four bits of bitsandbytes."""
    name = f"{base}.weight"
    if f"{name}_scale" in stored.headers:
        return _fp4(stored, base, name, {"scale_2": f"{name}_scale_2"})
    for kind, type_name in (("nf4", "NF4"), ("fp4", "FP4")):
        state = f"{name}.quant_state.bitsandbytes__{kind}"
        if state in stored.headers:
            return _table(stored, name, state, type_name)
    return None


def _table(stored: StoredTensors, name: str, state: str, type_name: str) -> PackedTensor:
    parts = {role: f"{name}.{role}" for role in ("absmax", "quant_map")}
    nested = {role: f"{name}.{role}" for role in ("nested_absmax", "nested_quant_map")}
    parts = stored.parts({"weight": name, "state": state} | parts, nested)
    count = prod(stored.shape(name)) * 2
    tensor = PackedTensor(name, type_name, (count,), parts, TableLayout(), is_flat=True)
    if stored.read is None:
        return tensor
    shape = read_state({"state": stored.read(state)}).shape
    check_fit(tensor.can_have(shape))
    return replace(tensor, shape=shape, is_flat=False)


def _fp4(stored: StoredTensors, base: str, packed: str, second: dict[str, str]) -> PackedTensor:
    parts = stored.parts({"weight": packed, "scale": f"{base}.weight_scale"}, second)
    size, scale = stored.shape(packed), stored.headers[parts["scale"]]
    check_fit(len(size) == len(scale.shape) == 2 and size[0] == scale.shape[0])
    shape = (size[0], size[1] * 2)
    run = block_size(shape[1], scale.shape[1], 0)
    is_nvfp4 = scale.type_name in FP8_TYPES
    if not is_nvfp4 and scale.type_name not in EXPONENT_TYPES:
        raise stored.refusal(
            f"that is not read: {scale.name} has the type {scale.type_name}, and its weights U8"
        )
    if is_nvfp4 and not second.keys() & parts.keys():
        raise stored.refusal(f"without the second scale of {base}.weight")
    type_name = "NVFP4" if is_nvfp4 else "MXFP4"
    return PackedTensor(f"{base}.weight", type_name, shape, parts, Fp4(), run=run)


def _int8(stored: StoredTensors, base: str) -> PackedTensor:
    name = f"{base}.weight"
    shape, block = stored.shape(name), stored.method.block_of(base)
    if f"{base}.SCB" in stored.headers:  # bitsandbytes
        parts, factor = {"weight": name, "scale": f"{base}.SCB"}, 1 / 127
    else:
        parts = {"weight": name, "scale": f"{name}_scale"}
        parts, factor = stored.parts(parts, {"zero_point": f"{name}_zero_point"}), 1.0
    _, _, run = scale_grid(shape, stored.shape(parts["scale"]), block)
    return PackedTensor(name, "INT8", shape, parts, Int8(shape, block, factor), run=run)


def _fp8(stored: StoredTensors, tensor: "TensorHeader") -> PackedTensor:
    names = [tensor.name + end for end in SCALE_ENDS]
    scale = next((name for name in names if name in stored.headers), None)
    if scale is None and stored.method.name:
        raise stored.missing(names[0])
    check_fit(len(tensor.shape) > 0)
    parts, run = {"weight": tensor.name}, 0
    block = stored.method.block_of(tensor.name.removesuffix(".weight"))
    if scale is not None:
        parts["scale"] = scale
        _, _, run = scale_grid(tensor.shape, stored.shape(scale), block)
    type_name = "FP8" if tensor.type_name == "F8_E4M3" else "FP8_E5M2"
    layout = Fp8(tensor.shape, block)
    return PackedTensor(tensor.name, type_name, tensor.shape, parts, layout, run=run)


def _experts_of_mxfp4(stored: StoredTensors) -> Iterator[PackedTensor]:
    """The experts of gpt-oss, [experts, outputs, inputs], which transformers reads."""
    for name, tensor in stored.headers.items():
        base = name.removesuffix("_blocks")
        if base != name and tensor.type_name == "U8" and len(tensor.shape) == 4:
            shape = (*tensor.shape[:2], tensor.shape[2] * tensor.shape[3] * 2)
            parts = stored.parts({"blocks": name, "scales": f"{base}_scales"}, {})
            yield PackedTensor(base, "MXFP4", shape, parts, None)
