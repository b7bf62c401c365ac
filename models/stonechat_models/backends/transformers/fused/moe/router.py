"""The router of a mixture of experts: a product, and one kernel that chooses the experts."""

from dataclasses import dataclass

import torch
import triton
from torch import nn

from stonechat_models.backends.transformers.fused.moe.expert_kernels import router_kernel
from stonechat_models.hardware.dependent_launch import launch_settings


@dataclass(frozen=True, slots=True)
class Scoring:
    """How logits become the weights of the best experts.

    `is_float32`: the logits are computed in float32. `normalises`: the weights of a token add up
    to `scale`. `dtype`: that of the weights.
    """

    is_float32: bool
    uses_sigmoid: bool
    normalises: bool
    scale: float
    dtype: torch.dtype


class FusedRouter(nn.Module):
    """Replaces a router that returns (logits, weights, ids), with the parameters it had.

    `ids_first`: it returns (ids, weights, logits), as Granite's does in transformers 5.17.
    `weight` is [E, size], `bias` [E] is added to the logits, `correction` [E] to the scores that
    choose the experts.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        scoring: Scoring,
        *,
        top_k: int,
        bias: nn.Parameter | None = None,
        correction: torch.Tensor | None = None,
        ids_first: bool = False,
    ) -> None:
        super().__init__()
        if scoring.is_float32 and weight.dtype != torch.float32:
            weight = nn.Parameter(weight.float(), requires_grad=False)
        self.weight = weight
        self.bias = bias
        self.register_buffer("correction", correction)
        self.scoring = scoring
        self.top_k = top_k
        self.ids_first = ids_first

    def forward(
        self, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns logits [T, E], and weights and int64 ids [T, K] of the best experts in order."""
        logits, weights, ids = self._run(hidden_states)
        return (ids, weights, logits) if self.ids_first else (logits, weights, ids)

    def choose(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns only the weights and the ids."""
        _, weights, ids = self._run(hidden_states)
        return weights, ids

    def _run(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits = nn.functional.linear(rows.to(self.weight.dtype), self.weight, self.bias)
        num_tokens, num_experts = logits.shape
        weights = torch.empty(
            num_tokens, self.top_k, dtype=self.scoring.dtype, device=logits.device
        )
        ids = torch.empty(num_tokens, self.top_k, dtype=torch.int64, device=logits.device)
        router_kernel[(num_tokens,)](
            logits,
            logits if self.correction is None else self.correction,
            weights,
            ids,
            self.top_k,
            self.scoring.scale,
            NUM_EXPERTS=num_experts,
            BLOCK=triton.next_power_of_2(num_experts),
            USES_SIGMOID=self.scoring.uses_sigmoid,
            HAS_CORRECTION=self.correction is not None,
            NORMALISES=self.scoring.normalises,
            num_warps=1 if num_experts <= 256 else 4,
            **launch_settings(logits.device),
        )
        return logits, weights, ids
