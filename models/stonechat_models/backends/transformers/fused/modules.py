"""Modules that compute in one kernel what a model's own modules compute in several."""

import torch
import triton
from torch import nn

from stonechat_models.backends.transformers.fused.kernels import rms_norm_kernel
from stonechat_models.backends.transformers.fused.linears import adds_in_product
from stonechat_models.backends.transformers.fused.products import add_product, gated_product
from stonechat_models.hardware.dependent_launch import launch_settings


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
            **launch_settings(x.device),
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
        output: torch.Tensor = self.down_proj(self._gated(x.reshape(-1, x.shape[-1]), None))
        return output.view(*x.shape[:-1], output.shape[-1])

    def add_to(
        self, residual: torch.Tensor, x: torch.Tensor, norm: FusedRMSNorm | None = None
    ) -> torch.Tensor:
        """Add the MLP of norm(x) to `residual` in place, and return it. Both are [rows, size].

        Without `norm`, x is what the MLP multiplies. It may be the residual itself.
        """
        gated = self._gated(x, norm)
        if adds_in_product(self.down_proj):
            return add_product(residual, self.down_proj, gated)
        return residual.add_(self.down_proj(gated))

    def _gated(self, rows: torch.Tensor, norm: FusedRMSNorm | None) -> torch.Tensor:
        return gated_product(rows, norm, self.gate_up_proj, uses_gelu=self.uses_gelu)
