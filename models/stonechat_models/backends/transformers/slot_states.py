"""Recurrent layers whose decode steps change the states in the pool itself, without a copy."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stonechat_models.backends.transformers.cache_argument import cache_argument


@dataclass(frozen=True, slots=True)
class SlotStates:
    """The states of one layer, [slots + 1, ...], and the slots of a step's rows, int64[N].

    The last slot is that of padding rows: it is neither read nor written.
    """

    conv: torch.Tensor
    recurrent: torch.Tensor | None
    slots: torch.Tensor

    @property
    def padding_slot(self) -> int:
        return len(self.conv) - 1


class SlotMixer(nn.Module):
    """Replaces a recurrent layer. A step for which the layer has slots goes to `decode`, all others
    to the layer that it replaces.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.original = original
        self.layer_idx = int(original.layer_idx)
        self.cache_name = cache_argument(original.forward)

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """Maps hidden states [N, T, size] to the layer's output [N, T, size]."""
        cache = arguments.get(self.cache_name)
        layer = None if cache is None else cache.layers[self.layer_idx]
        slots = getattr(layer, "slots", None)
        if layer is None or slots is None:
            output: torch.Tensor = self.original(hidden_states, **arguments)
            return output
        states = SlotStates(layer.conv_states[0], layer.recurrent_states[0], slots)
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        return self.decode(rows, states).view(hidden_states.shape)

    def decode(self, rows: torch.Tensor, states: SlotStates) -> torch.Tensor:
        """Maps the hidden states [N, size] of one token of each sequence to the output [N, size].

        Changes the states in the slots.
        """
        raise NotImplementedError
