"""Modules that do in one kernel what a model's own do in several."""

import torch
import torch.nn.functional as F
import triton
from torch import nn

from stonechat_models.fused.kernels import rms_norm_kernel, silu_mul_kernel

SILU_BLOCK = 1024


class FusedRMSNorm(nn.Module):
    """RMS norm over the last dimension, with the weight of the norm it replaces."""

    def __init__(
        self, weight: nn.Parameter, epsilon: float, offset: float, rounds_first: bool
    ) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon
        self.offset = offset
        self.rounds_first = rounds_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[-1]
        rows = x.reshape(-1, size)
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        block = triton.next_power_of_2(size)
        rms_norm_kernel[(rows.shape[0],)](
            rows,
            self.weight,
            output,
            rows.stride(0),
            self.epsilon,
            self.offset,
            SIZE=size,
            BLOCK=block,
            ROUNDS_FIRST=self.rounds_first,
            num_warps=max(1, min(8, block // 256)),
        )
        return output


class MergedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) with gate and up as one product; takes over their weights."""

    def __init__(self, gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat((gate.weight, up.weight)), requires_grad=False)
        self.bias = None
        if gate.bias is not None:
            self.bias = nn.Parameter(torch.cat((gate.bias, up.bias)), requires_grad=False)
        self.down_proj = down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate_up = F.linear(x, self.weight, self.bias)
        size = gate_up.shape[-1] // 2
        output = torch.empty((*gate_up.shape[:-1], size), dtype=x.dtype, device=x.device)
        num_rows = gate_up.numel() // (2 * size)
        silu_mul_kernel[(num_rows, triton.cdiv(size, SILU_BLOCK))](
            gate_up, output, SIZE=size, BLOCK=SILU_BLOCK
        )
        projected: torch.Tensor = self.down_proj(output)
        return projected
