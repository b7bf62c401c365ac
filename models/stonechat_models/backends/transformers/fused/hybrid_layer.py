"""A decoder layer of a model with recurrent states, with fewer kernels for its additions."""

from typing import Any, NamedTuple

import torch
from torch import nn

from stonechat_models.backends.transformers.cache_argument import cache_argument
from stonechat_models.backends.transformers.fused.modules import FusedRMSNorm, MergedMLP
from stonechat_models.backends.transformers.slot_states import SlotMixer


class LayerNames(NamedTuple):
    """What a family calls the parts of its layers. Attention is always `self_attn`."""

    norm: str
    recurrent: str
    mlp_norm: str
    mlp: str


class FusedHybridLayer(nn.Module):
    """Computes norm, attention or recurrent layer, add, norm, MLP, add.

    The second norm adds in its kernel, and the last product adds to its output. The parts of the
    original layer keep their names.
    """

    def __init__(self, original: nn.Module, names: LayerNames) -> None:
        super().__init__()
        for name, part in original.named_children():
            self.add_module(name, part)
        self.names = names
        self.cache_name = cache_argument(original.forward)

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """Maps hidden states [N, T, size] to the same shape."""
        norm, mlp_norm = self._norm(self.names.norm), self._norm(self.names.mlp_norm)
        mlp = self.get_submodule(self.names.mlp)
        assert isinstance(mlp, MergedMLP)
        mixed = self._mixed(norm(hidden_states), arguments)
        summed, normed = mlp_norm.add_and_norm(hidden_states, mixed)
        size = hidden_states.shape[-1]
        return mlp.add_to(summed.view(-1, size), normed.view(-1, size)).view(hidden_states.shape)

    def _mixed(self, normed: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        mixed: torch.Tensor
        recurrent = self._modules.get(self.names.recurrent)
        if recurrent is None:
            mixed, _ = self.get_submodule("self_attn")(hidden_states=normed, **arguments)
            return mixed
        assert isinstance(recurrent, SlotMixer)
        for name in ("position_embeddings", "position_ids", "use_cache"):
            arguments.pop(name, None)
        arguments[recurrent.cache_name] = arguments.pop(self.cache_name, None)
        mixed = recurrent(normed, **arguments)
        return mixed

    def _norm(self, name: str) -> FusedRMSNorm:
        norm = self.get_submodule(name)
        assert isinstance(norm, FusedRMSNorm)
        return norm
