"""Parity checks of fused parts: random input, the loaded weights, the original as reference."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.interface import ProbeContext
from stonechat_models.backends.transformers.packing_check import probe_layers
from stonechat_models.backends.transformers.verify import (
    TOLERANCE,
    random_prompts,
    relative_error,
)

logger = logging.getLogger(__name__)

PARITY_ROWS = 5
LENGTHS = (4, 1, 3)
"""Lengths of the packed sequences for attention. The last sequence is at high positions."""
MAX_POSITION = 4096


def random_rows(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Normally distributed numbers, the same each time, with the dtype and device of `like`."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator).to(like)


def agree(expected: object, actual: object, kind: str = "fused") -> bool:
    """Whether both are tensors of one dtype and shape, and equal within a few roundings.

    `kind`: which tolerance counts.
    """
    if not isinstance(expected, torch.Tensor) or not isinstance(actual, torch.Tensor):
        return False
    if (expected.dtype, expected.shape) != (actual.dtype, actual.shape):
        return False
    error = relative_error(expected.float(), actual.float(), expected.float().abs().max())
    return bool((error <= TOLERANCE[kind][expected.dtype]).all())


def output_of(part: nn.Module, *args: Any, **kwargs: Any) -> object:
    """What `part` returns, or None if it needs other arguments or cannot run here."""
    try:
        return part(*args, **kwargs)
    except Exception as error:  # after any error, the model keeps its own part
        logger.info("a parity check of %s failed", type(part).__name__, exc_info=error)
        return None


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call of a layer's attention: its arguments and its output."""

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    spec: AttentionSpec
    output: torch.Tensor


class ParityContext(ProbeContext):
    """Attends each packed sequence alone, and records each call.

    `answer`: the output to return instead. If scores are large, a rounding in queries and keys
    changes the weights of the values. So the check compares queries, keys and values directly, and
    compares the rest of the part on one and the same attention output.
    """

    def __init__(self, answer: torch.Tensor | None = None) -> None:
        super().__init__([0, *accumulate(LENGTHS)])
        self.attention_calls: list[AttentionCall] = []
        self._answer = answer

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        output = self._answer
        if output is None:
            output = super().attend(layer, query, key, value, spec)
        self.attention_calls.append(AttentionCall(layer, query, key, value, spec, output))
        return output


@dataclass(frozen=True, slots=True)
class Call:
    """The keyword arguments that a model passes to a part, except for the hidden states."""

    arguments: Mapping[str, Any]

    def run(self, part: nn.Module, hidden: torch.Tensor, context: ParityContext) -> object:
        return output_of(part, hidden, **{**self.arguments, "stonechat": context})


def record_calls(module: nn.Module, names: Sequence[str]) -> dict[str, Call]:
    """How a packed forward of `module` calls its parts of these names.

    A part is left out if it is not called, or if it has positional arguments besides the hidden
    states. All are left out if `module` is not a causal model of transformers or cannot run here.
    """
    calls: dict[str, Call] = {}
    if not names or not hasattr(module, "set_attn_implementation"):
        return calls

    def hook(name: str) -> Callable[..., None]:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keywords = {key: value for key, value in kwargs.items() if key != "hidden_states"}
            if len(args) == (0 if "hidden_states" in kwargs else 1):
                calls[name] = Call(keywords)

        return record

    handles = [
        module.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True)
        for name in names
    ]
    config: Any = module.config.get_text_config()  # type: ignore[operator, union-attr]
    last = min(MAX_POSITION, getattr(config, "max_position_embeddings", MAX_POSITION))
    batch = random_prompts(LENGTHS, int(config.vocab_size))
    batch.positions[-LENGTHS[-1] :] += max(0, last - LENGTHS[-1])
    try:
        probe_layers(module, batch.to(module.get_input_embeddings().weight.device))  # type: ignore[operator]
    except Exception as error:
        logger.warning("the parity checks of %s cannot run", type(module).__name__, exc_info=error)
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return calls
