"""Packed formats of small floats: FP8, and NVFP4 and MXFP4."""

from dataclasses import dataclass

import torch

from stonechat_models.checkpoint.packed.layouts import (
    Codes,
    IntegerLayout,
    Layout,
    Parts,
    group_index,
    scale_values,
    spread,
)


@dataclass(frozen=True, slots=True)
class Fp8(Layout):
    """float8, times a scale if there is one."""

    shape: tuple[int, ...]
    block: tuple[int, int]

    def floats(self, parts: Parts, rows: torch.Tensor) -> torch.Tensor:
        stored = parts["weight"]
        data = stored.view(torch.uint8).reshape(-1, self.shape[-1])[rows]
        values = data.view(stored.dtype).float()
        if "scale" not in parts:
            return values
        scales, group_of = spread(scale_values(parts["scale"]), self.shape, self.block, rows)
        return values.mul_(scales[:, group_of])


FP4_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the values of the 4-bit float e2m1."""


@dataclass(frozen=True, slots=True)
class Fp4(IntegerLayout):
    """4-bit floats, the even columns in the low halves of bytes, with a scale for each group.

    NVFP4 has a second scale for the whole matrix: a factor `scale_2`, or a divisor `global_scale`.
    """

    def codes(self, parts: Parts, rows: torch.Tensor) -> Codes:
        packed = parts["weight"][rows]
        halves = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
        values = torch.tensor(FP4_DOUBLED, dtype=torch.int8)[halves.long()]
        scales = scale_values(parts["scale"])[rows]
        if "scale_2" in parts:
            scales = scales * parts["scale_2"].float().reshape(-1)[0]
        if "global_scale" in parts:
            scales = scales / parts["global_scale"].float().reshape(-1)[0]
        group_of = group_index({}, values.shape[1], scales.shape[1], 0)
        return Codes(values, scales * 0.5, torch.zeros_like(scales), group_of)
