"""Puts LoRA adapters beside the layers of a loaded module, and checks that they are computed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from stonechat_models.backends.quantization.linear import QuantizedLinear
from stonechat_models.backends.transformers.adapter_rows import StepRows
from stonechat_models.backends.transformers.lora.linear import Factors, LoraLinear, Stack
from stonechat_models.backends.transformers.slot_states import SlotMixer
from stonechat_models.checkpoint.adapter.files import Adapter
from stonechat_models.errors import UnsupportedModelError

LINEAR_TYPES = (nn.Linear, Conv1D, QuantizedLinear)
FUSED_TYPES = frozenset({"FusedAttention", "MergedMLP"})
"""Names of the classes, whose modules need Triton."""


def refuse_other_layers(module: nn.Module, adapters: Sequence[Adapter], model: str) -> None:
    """Check that each adapter fits `module`, which is called `model`, before parts of it are fused.

    Raises `ModelLoadError` for an adapter of another model, and `UnsupportedModelError` for one
    that changes other layers than linear ones.
    """
    parts = dict(module.named_modules())
    for adapter in adapters:
        adapter.refuse_missing(model, {n for n in adapter.layers if _layer_name(n) not in parts})
        for name in adapter.layers:
            layer = parts[_layer_name(name)]
            if not isinstance(layer, LINEAR_TYPES):
                raise UnsupportedModelError(
                    f"the adapter {adapter.name} changes {name}, a {type(layer).__name__}: only "
                    "beside linear layers are adapters computed (--adapter merges one instead)"
                )
            shape = layer.weight.shape[::-1] if isinstance(layer, Conv1D) else _shape(layer)
            adapter.refuse_shape(name, (*shape,))
            adapter.refuse_own_weight(name, cast(torch.Tensor, layer.weight))


@torch.inference_mode(False)
@torch.no_grad()
def add_adapters(
    module: nn.Module, adapters: Sequence[Adapter], device: torch.device, dtype: torch.dtype
) -> tuple[StepRows, list[int]]:
    """Replace the layers that the adapters change, in steps that have adapters.

    `dtype`: that of activations.

    Call it last: after layers are fused and quantised. Returns what the layers read a step's rows
    from, and the bytes of each adapter. Raises `ModelLoadError` for an adapter that cannot be read.
    """
    rows, head = StepRows(), module.get_output_embeddings()  # type: ignore[operator]
    fused = _fused_layers(module)
    found: dict[str, dict[int, dict[int, Factors]]] = defaultdict(lambda: defaultdict(dict))
    sizes = [0] * len(adapters)
    for index, adapter in enumerate(adapters):
        for name in adapter.layers:
            place, start = _place(module, _layer_name(name), fused)
            a, b = adapter.factors(name)
            factors = a.to(device, dtype), b.T.to(device, dtype)
            found[place][start][index] = factors
            sizes[index] += sum(factor.nbytes for factor in factors)
    while found:
        place, factors_of_layer = found.popitem()
        parent, _, child = place.rpartition(".")
        layer = module.get_submodule(place)
        stacks = [Stack.of(factors, start) for start, factors in factors_of_layer.items()]
        replacement = LoraLinear(layer, rows, stacks, is_head=layer is head)
        if layer is head:  # what taps the head's input must find the same layer in all steps
            setattr(module.get_submodule(parent), child, replacement)
        else:
            rows.add_layer(module.get_submodule(parent), child, replacement)
    return rows, sizes


def _layer_name(weight: str) -> str:
    return weight.removesuffix(".weight")


def _shape(layer: nn.Module) -> tuple[int, int]:
    return layer.out_features, layer.in_features  # type: ignore[return-value]


def _place(module: nn.Module, name: str, fused: Mapping[str, tuple[str, int]]) -> tuple[str, int]:
    """Return the layer that computes what the layer `name` did, and its first output there.

    Raises `UnsupportedModelError` if the layer was fused with others that are not known here.
    """
    place = fused.get(name, (name, 0))
    try:
        module.get_submodule(place[0])
    except AttributeError:
        raise UnsupportedModelError(
            f"an adapter changes {name}, which is computed together with other layers on this "
            "device (--adapter merges one into the weights)"
        ) from None
    return place


def _fused_layers(module: nn.Module) -> dict[str, tuple[str, int]]:
    """Return where layers are computed that are part of another one, and their first output there.

    Fused attention has query, key and value in one layer, a merged MLP has gate and up.
    """
    places = {
        f"{name}.{child}": (f"{name}.original.{child}", 0)
        for name, part in module.named_modules()
        if isinstance(part, SlotMixer)
        for child, _ in part.original.named_children()
    }
    if not any(type(part).__name__ in FUSED_TYPES for part in module.modules()):
        return places
    from stonechat_models.backends.transformers.fused.attention import FusedAttention
    from stonechat_models.backends.transformers.fused.modules import MergedMLP
    from stonechat_models.backends.transformers.fused.recognise import MLP_NAMES, OUTPUT_NAMES

    for name, part in module.named_modules():
        if isinstance(part, FusedAttention):
            num_queries = part.num_heads * (2 if part.is_gated else 1)
            firsts = (0, num_queries, num_queries + part.num_kv_heads)
            for layer, first in zip("qkv", firsts, strict=True):
                places[f"{name}.{layer}_proj"] = f"{name}.qkv_proj", first * part.head_dim
            for output in OUTPUT_NAMES:
                places[f"{name}.{output}"] = f"{name}.o_proj", 0
        elif isinstance(part, MergedMLP):
            num_outputs = _shape(part.gate_up_proj)[0]
            for gate_up, gate, up, down in MLP_NAMES:
                places[f"{name}.{gate_up}"] = places[f"{name}.{gate}"] = f"{name}.gate_up_proj", 0
                places[f"{name}.{up}"] = f"{name}.gate_up_proj", num_outputs // 2
                places[f"{name}.{down}"] = f"{name}.down_proj", 0
    return places
