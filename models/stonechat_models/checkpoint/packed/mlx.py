"""MLX: integers with a scale and a bias for each group, as mlx-lm writes them.

It stores all experts of a layer in one tensor, under the name `switch_mlp`. Here each expert is a
weight of its own, as in other files.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from stonechat_models.checkpoint.packed.layouts import (
    GROUP,
    Codes,
    Layout,
    Parts,
    group_index,
    unpack_bits,
)
from stonechat_models.checkpoint.packed.stored import StoredTensors, check_fit, integer_type
from stonechat_models.checkpoint.packed.tensors import PackedTensor

STACKED, SINGLE = ".switch_mlp.", ".experts.{}."


@dataclass(frozen=True, slots=True)
class Affine(Layout):
    """uint32 words along the inputs; weights are values * scales + biases."""

    bits: int
    shape: tuple[int, int]
    group_size: int
    first_row: int = 0
    """Where the weight begins in its stored tensors, of all experts one behind the other."""

    def codes(self, parts: Parts, rows: torch.Tensor) -> Codes:
        values, scales, biases, group_of = self._read(parts, rows)
        # A group whose scale is 0 has the same number everywhere.
        scales = torch.where(scales == 0, torch.finfo(torch.float16).tiny, scales)
        return Codes(values, scales, -biases / scales, group_of)

    def floats(self, parts: Parts, rows: torch.Tensor) -> torch.Tensor:
        values, scales, biases, group_of = self._read(parts, rows)
        return values.float().mul_(scales[:, group_of]).add_(biases[:, group_of])

    def _read(
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


def affine_weights(stored: StoredTensors, base: str) -> Iterator[PackedTensor]:
    """Yield the weight of the layer `base`, or those of its experts.

    Raises what `find_packed` raises.
    """
    parts = {role: f"{base}.{role}" for role in ("weight", "scales", "biases")}
    parts = stored.parts(parts, {})
    words, scales, biases = (stored.shape(parts[role]) for role in parts)
    check_fit(len(words) in (2, 3) and words[:-1] == scales[:-1] and scales == biases)
    bits, size = stored.method.bits_of(base), stored.method.group_size_of(base)
    n, k = words[-2], scales[-1] * size
    check_fit(bits in (2, 3, 4, 5, 6, 8) and size > 0 and words[-1] * 32 == k * bits)
    type_name = integer_type(bits, size % GROUP == 0, False)
    if len(words) == 2:
        yield PackedTensor(f"{base}.weight", type_name, (n, k), parts, Affine(bits, (n, k), size))
        return
    if STACKED not in base:
        raise stored.refusal(f"that is not read: {base} has {len(words)} dimensions")
    for expert in range(words[0]):
        name = base.replace(STACKED, SINGLE.format(expert)) + ".weight"
        layout = Affine(bits, (n, k), size, expert * n)
        yield PackedTensor(name, type_name, (n, k), parts, layout)
