"""Modules that compute in one kernel what a model's own modules compute in several."""

import torch
import triton
from torch import nn

from stonechat_models.backends.transformers.fused.kernels import gated_kernel, rms_norm_kernel
from stonechat_models.backends.transformers.fused.linears import add_product, adds_in_product

GATED_BLOCK = 1024


class FusedRMSNorm(nn.Module):
    """RMS norm over the last dimension, with the weight of the norm that it replaces.

    `offset` is added to the weight. `rounds_first`: the normalised row is rounded before scaling.
    """

    def __init__(
        self, weight: nn.Parameter, epsilon: float, offset: float, rounds_first: bool
    ) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon
        self.offset = offset
        self.rounds_first = rounds_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, _ = self._launch(x, None)
        return output

    def add_and_norm(
        self, residual: torch.Tensor, added: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the sum and its norm."""
        output, summed = self._launch(residual, added)
        return summed, output

    def _launch(
        self, x: torch.Tensor, added: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size = x.shape[-1]
        rows = x.reshape(-1, size)
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        summed = output if added is None else torch.empty_like(output)
        block = triton.next_power_of_2(size)
        rms_norm_kernel[(rows.shape[0],)](
            rows,
            rows if added is None else added.contiguous(),
            self.weight,
            summed,
            output,
            rows.stride(0),
            self.epsilon,
            self.offset,
            SIZE=size,
            BLOCK=block,
            ROUNDS_FIRST=self.rounds_first,
            ADDS=added is not None,
            num_warps=max(1, min(8, block // 256)),
        )
        return output, summed


class MergedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) with gate and up as one product.

    `gate_up_proj` returns the gate's elements, then those of up. `uses_gelu`: the activation is
    GELU (its tanh approximation) instead of SiLU.
    """

    def __init__(self, gate_up: nn.Module, down: nn.Module, *, uses_gelu: bool = False) -> None:
        super().__init__()
        self.gate_up_proj = gate_up
        self.down_proj = down
        self.uses_gelu = uses_gelu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down_proj(self._gated(x))
        return output

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add the MLP of `x` to `residual` in place, and return it. Both are [rows, size]."""
        if adds_in_product(self.down_proj):
            return add_product(residual, self.down_proj, self._gated(x))
        return residual.add_(self.forward(x))

    def _gated(self, x: torch.Tensor) -> torch.Tensor:
        gate_up = self.gate_up_proj(x)
        size = gate_up.shape[-1] // 2
        output = torch.empty((*gate_up.shape[:-1], size), dtype=x.dtype, device=x.device)
        num_rows = gate_up.numel() // (2 * size)
        gated_kernel[(num_rows, triton.cdiv(size, GATED_BLOCK))](
            gate_up.contiguous(), output, SIZE=size, BLOCK=GATED_BLOCK, GELU=self.uses_gelu
        )
        return output
