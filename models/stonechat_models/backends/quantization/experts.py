"""Quantises the experts of a mixture, for the common experts module of transformers.

That module holds all experts of a layer in 3-D weights. Its attributes describe the weights
(`is_transposed`, `has_gate`, `has_bias`, since transformers 5.18 or later `has_post_expert_norm`);
its `_apply_gate` applies a gate.
"""

import torch
from torch import nn

from stonechat_models.backends.quantization.choose import quantized_linear
from stonechat_models.backends.quantization.cpu_linear import LinearTeam
from stonechat_models.backends.quantization.groupwise import Bits

FLAGS = ("is_transposed", "has_gate", "has_bias", "_apply_gate")


def is_experts(module: nn.Module, kind: str | None = None) -> bool:
    """True for such an experts module on the CPU. `kind`: see `quantized_linear`.

    On other devices, a loop over the experts in use would make the device wait for Python.
    """
    if not all(hasattr(module, flag) for flag in FLAGS):
        return False
    names = (_up_name(module), "down_proj")
    weights = [getattr(module, name, None) for name in names]
    return all(
        isinstance(w, nn.Parameter) and w.dim() == 3 and (kind or w.device.type) == "cpu"
        for w in weights
    )


def _up_name(module: nn.Module) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


class QuantizedExperts(nn.Module):
    """Replaces the module `source`: removes its weights, and still uses its gate and its norm."""

    def __init__(
        self, source: nn.Module, bits: Bits, team: LinearTeam | None, kind: str | None = None
    ) -> None:
        super().__init__()
        self.up = _remove_quantised(source, _up_name(source), bits, team, kind)
        self.down = _remove_quantised(source, "down_proj", bits, team, kind)
        self.source = source

    def forward(
        self, hidden_states: torch.Tensor, expert_ids: torch.Tensor, expert_weights: torch.Tensor
    ) -> torch.Tensor:
        """Apply experts int64[T, K] with weights [T, K] to tokens [T, H]; return [T, H].

        Each pair of token and expert gets its own row. The K rows of a token are then added, always
        in the same order. So a token's result does not depend on the other tokens.
        """
        output = hidden_states.new_zeros(*expert_ids.shape, hidden_states.shape[-1])
        for expert in sorted(set(expert_ids.flatten().tolist())):
            token, column = torch.where(expert_ids == expert)
            rows = self._expert(expert, hidden_states[token])
            output[token, column] = rows * expert_weights[token, column, None].to(rows.dtype)
        return output.sum(dim=1)

    def _expert(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        source = self.source
        activation = source._apply_gate if source.has_gate else source.act_fn
        rows = self.down[expert](activation(self.up[expert](rows)))  # type: ignore[operator]
        if getattr(source, "has_post_expert_norm", False):
            rows = source.post_expert_norm(rows)  # type: ignore[operator]
        return rows


def _remove_quantised(
    source: nn.Module, name: str, bits: Bits, team: LinearTeam | None, kind: str | None
) -> nn.ModuleList:
    weights: torch.Tensor = getattr(source, name)
    bias_name = f"{name}_bias"
    biases: torch.Tensor | None = getattr(source, bias_name) if source.has_bias else None
    linears = []
    for i, weight in enumerate(weights):
        bias = None if biases is None else biases[i]
        weight = weight.T if source.is_transposed else weight
        linear = quantized_linear(weight, bias, bits, team, kind)
        assert linear is not None, "on a CPU every shape is supported"
        linears.append(linear)
    delattr(source, name)
    if biases is not None:
        delattr(source, bias_name)
    return nn.ModuleList(linears)
