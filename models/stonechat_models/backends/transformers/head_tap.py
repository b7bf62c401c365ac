"""Reads the final hidden states of a module: what its output head gets."""

from typing import Any

import torch
from torch import nn

from stonechat_models.errors import StepError, UnsupportedModelError


class HeadTap:
    """Records the inputs of the output head within a `with` block, one tensor per call."""

    def __init__(self, module: nn.Module) -> None:
        self._head = output_head(module)
        self._handle: Any = None
        self.calls: list[torch.Tensor] = []
        """Each float32[N, T, hidden_size]."""

    def __enter__(self) -> "HeadTap":
        self._handle = self._head.register_forward_pre_hook(self._record)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def call(self, index: int) -> torch.Tensor:
        """Return the hidden states of a call. Raises `StepError` if the head was not called."""
        if index >= len(self.calls):
            raise StepError("the model does not call its output head")
        return self.calls[index]

    def _record(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.calls.append(inputs[0].float())


def head_size(module: nn.Module) -> int:
    """Return the size of the hidden states. Raises what `output_head` raises."""
    config: Any = module.config.get_text_config()  # type: ignore[operator, union-attr]
    return int(getattr(output_head(module), "in_features", 0) or config.hidden_size)


def output_head(module: nn.Module) -> nn.Module:
    """Return the module that computes the logits.

    Raises `UnsupportedModelError` if the model does not name it.
    """
    head: nn.Module | None = module.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise UnsupportedModelError(
            "its hidden states cannot be read, so it makes no embeddings: leave out --embeddings"
        )
    return head
