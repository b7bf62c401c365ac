"""A mixture of experts as one block: router, experts, and an MLP for all tokens beside them."""

import torch
from torch import nn

from stonechat_models.backends.transformers.fused.modules import MergedMLP
from stonechat_models.backends.transformers.fused.moe.experts import FusedExperts
from stonechat_models.backends.transformers.fused.moe.router import FusedRouter


class FusedMixture(nn.Module):
    """Replaces a block that adds the outputs of its experts and, if there is one, of `shared`.

    `is_pair`: it returns the weights of the experts too, as gpt-oss's does.
    """

    def __init__(
        self,
        router: FusedRouter,
        experts: FusedExperts,
        shared: MergedMLP | None = None,
        *,
        is_pair: bool = False,
    ) -> None:
        super().__init__()
        self.gate = router
        self.experts = experts
        self.shared_experts = shared
        self.is_pair = is_pair

    def forward(
        self, hidden_states: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Maps hidden states [..., H] to the same shape."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        shared = None if self.shared_experts is None else self.shared_experts(rows)
        output, weights = self._add_experts(shared, rows)
        output = output.view(hidden_states.shape)
        return (output, weights) if self.is_pair else output

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add the block's output for `x` to `residual` in place. Both are [rows, H], contiguous."""
        if self.shared_experts is not None:
            residual = self.shared_experts.add_to(residual, x)
        return self._add_experts(residual, x)[0]

    def _add_experts(
        self, residual: torch.Tensor | None, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = self.gate.choose(rows)
        return self.experts(rows, ids, weights, residual=residual), weights
