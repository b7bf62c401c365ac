"""MLX: integers with a scale and a bias for each group, as mlx-lm and mlx-vlm write them.

They store all experts of a layer in one tensor, under the name `switch_mlp`. Here each expert is a
weight of its own, as in other files. Convolutions have their channels last. Where norms multiply by
1 + w, as in Qwen3.5, the file has the sum.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import torch

from stonechat_models.checkpoint.packed.layouts import (
    GROUP,
    Codes,
    Layout,
    MisfitError,
    Parts,
    group_index,
    unpack_bits,
)
from stonechat_models.checkpoint.packed.stored import StoredTensors, check_fit, integer_type
from stonechat_models.checkpoint.packed.tensors import PackedTensor

if TYPE_CHECKING:
    from stonechat_models.checkpoint.headers import TensorHeader

STACKED, SINGLE = ".switch_mlp.", ".experts.{}."
LANGUAGE_MODEL = "language_model."
"""How names begin in files of models that have a vision tower, whether it is there or not."""
DELTA_CONVOLUTION = ".linear_attn.conv1d.weight"
CONVOLUTIONS = (DELTA_CONVOLUTION, ".conv.conv.weight")
SUMMED_NORMS = (
    *(".input_layernorm.weight", ".post_attention_layernorm.weight"),
    *("model.norm.weight", ".q_norm.weight", ".k_norm.weight"),
)


@dataclass(frozen=True, slots=True)
class Affine(Layout):
    """uint32 words along the inputs; weights are values * scales + biases."""

    bits: int
    shape: tuple[int, int]
    group_size: int
    first_row: int = 0
    """Where the weight begins in its stored tensors, of all experts one behind the other."""

    def alone(self, parts: Parts) -> tuple["Affine", Parts]:
        """The layout and parts of this weight without the others of its stored tensors."""
        rows = slice(self.first_row, self.first_row + self.shape[0])
        own = {role: part.reshape(-1, part.shape[-1])[rows] for role, part in parts.items()}
        return replace(self, first_row=0), own

    def codes(self, parts: Parts, rows: torch.Tensor) -> Codes:
        values, scales, biases, group_of = self.read(parts, rows)
        is_flat = scales == 0  # such a group has the same number everywhere
        if bool(is_flat.any()):
            values = values.masked_fill_(is_flat[:, group_of], 0)
            scales = scales.masked_fill(is_flat, torch.finfo(torch.float16).tiny)
        return Codes(values, scales, -biases / scales, group_of)

    def floats(self, parts: Parts, rows: torch.Tensor) -> torch.Tensor:
        values, scales, biases, group_of = self.read(parts, rows)
        return values.float().mul_(scales[:, group_of]).add_(biases[:, group_of])

    def read(
        self, parts: Parts, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return integers [n, k], scales and biases float32[n, groups], and each column's group."""
        words, scales, biases = (
            part.reshape(-1, part.shape[-1])[rows + self.first_row]
            for part in (parts["weight"].view(torch.int32), parts["scales"], parts["biases"])
        )
        values = unpack_bits(words, self.bits, self.shape[1])
        group_of = group_index({}, self.shape[1], scales.shape[1], self.group_size)
        return values, scales.float(), biases.float(), group_of


@dataclass(frozen=True, slots=True)
class Shifted(Layout):
    """Floats with rows of `columns`, from which `offset` is subtracted."""

    columns: int
    offset: float

    def floats(self, parts: Parts, rows: torch.Tensor) -> torch.Tensor:
        return parts["weight"].reshape(-1, self.columns)[rows].float() - self.offset


def mlx_weights(stored: StoredTensors) -> Iterator[PackedTensor]:
    """Yield the weights that MLX stores in another form. Raises what `find_packed` raises."""
    has_sums = any(name.endswith(DELTA_CONVOLUTION) for name in stored.headers)
    for name, tensor in stored.headers.items():
        is_words = tensor.type_name == "U32" and name.endswith(".weight")
        try:
            if is_words:
                yield from _affine(stored, name.removesuffix(".weight"))
            elif name.endswith(CONVOLUTIONS):
                check_fit(len(tensor.shape) == 3 and tensor.shape[2] == 1)
                channels, taps, _ = tensor.shape
                yield _float(tensor, (channels, 1, taps), 0.0)
            elif has_sums and name.endswith(SUMMED_NORMS):
                yield _float(tensor, tensor.shape, 1.0)
        except MisfitError as error:
            raise stored.misfit(name) from error


def _float(tensor: "TensorHeader", shape: tuple[int, ...], offset: float) -> PackedTensor:
    layout = Shifted(shape[-1], offset)
    return PackedTensor(tensor.name, tensor.type_name, shape, {"weight": tensor.name}, layout)


def _affine(stored: StoredTensors, base: str) -> Iterator[PackedTensor]:
    """Yield the weight of the layer `base`, or those of its experts."""
    parts = {role: f"{base}.{role}" for role in ("weight", "scales", "biases")}
    parts = stored.parts(parts, {})
    words, scales, biases = (stored.shape(parts[role]) for role in parts)
    is_stack = STACKED in f"{base}."
    check_fit(len(words) == 2 + is_stack and words[:-1] == scales[:-1] and scales == biases)
    bits, size = stored.method.bits_of(base), stored.method.group_size_of(base)
    n, k = words[-2], scales[-1] * size
    check_fit(bits in (2, 3, 4, 5, 6, 8) and size > 0 and words[-1] * 32 == k * bits)
    type_name = integer_type(bits, size % GROUP == 0, False)
    for i in range(prod(words[:-2])):
        name = base.replace(STACKED, SINGLE.format(i)) + ".weight"
        layout = Affine(bits, (n, k), size, i * n)
        yield PackedTensor(name, type_name, (n, k), parts, layout, run=size)
