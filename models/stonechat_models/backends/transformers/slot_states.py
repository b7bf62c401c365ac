"""Recurrent layers that change the states in the pool itself, of all sequences at once."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.cache_argument import cache_argument


@dataclass(frozen=True, slots=True)
class StepSequences:
    """The sequences of a step: where their states lie, and which of the packed tokens they own."""

    slots: torch.Tensor
    """int64[N]"""
    query_start: torch.Tensor
    """int32[N + 1], as in `ForwardBatch`."""
    context_lens: torch.Tensor
    """int32[N], as in `ForwardBatch`."""
    of_tokens: torch.Tensor | None
    """int32[T]: the sequence of each token. None: each sequence has one token, not its first."""

    @classmethod
    def of(cls, batch: ForwardBatch, slots: torch.Tensor) -> "StepSequences":
        """Those of `batch`. Reads no number from the device, so that a CUDA graph can have it."""
        of_tokens = None
        if not batch.decodes_all:
            ends = batch.query_start[1:]
            tokens = torch.arange(batch.num_tokens, dtype=torch.int32, device=ends.device)
            of_tokens = torch.searchsorted(ends, tokens, right=True, out_int32=True)
        return cls(slots, batch.query_start, batch.context_lens, of_tokens)


@dataclass(frozen=True, slots=True)
class SlotStates:
    """The states of one layer, [slots + 1, ...], and the sequences of a step.

    The last slot is that of padding: it is neither read nor written.
    """

    conv: torch.Tensor
    recurrent: torch.Tensor | None
    sequences: StepSequences

    @property
    def padding_slot(self) -> int:
        return len(self.conv) - 1


class SlotMixer(nn.Module):
    """Replaces a recurrent layer. A step for which the layer has `sequences` goes to `mix`, all
    others to the layer that it replaces.
    """

    decodes = True
    """Whether `mix` may have one token of each sequence."""
    packs_prompts = True
    """Whether it may have prompts, beside sequences with one token."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.original = original
        self.layer_idx = int(original.layer_idx)
        self.cache_name = cache_argument(original.forward)

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """Maps hidden states [N, T, size] to the layer's output [N, T, size]."""
        cache = arguments.get(self.cache_name)
        layer = None if cache is None else cache.layers[self.layer_idx]
        sequences = getattr(layer, "sequences", None)
        if layer is None or sequences is None:
            output: torch.Tensor = self.original(hidden_states, **arguments)
            return output
        states = SlotStates(layer.conv_states[0], layer.recurrent_states[0], sequences)
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        return self.mix(rows, states).view(hidden_states.shape)

    def mix(self, rows: torch.Tensor, states: SlotStates) -> torch.Tensor:
        """Maps the hidden states [T, size] of the packed tokens to the output [T, size].

        Changes the states in the slots.
        """
        raise NotImplementedError
