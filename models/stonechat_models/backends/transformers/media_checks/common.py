"""The checks at load of models that take images or audio: a step against the model's own code.

A case is a prompt with embeddings at some places, and the logits that the model's own code gives
it. If a step of the engine gives other logits, the model takes no such media.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from stonechat_models.backends.base import StepMedia
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.tower_parts import tower_parts
from stonechat_models.backends.transformers.verify import (
    logits_error,
    logits_tolerance,
    packed_batch,
)
from stonechat_models.checkpoint.adapter.files import Adapter
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.model_info import AudioInfo, ImageInfo

TEXT_LENGTH = 7
"""Tokens of another sequence in the same step."""
TOKENS = ("_token_id", "_token_index")
"""How configs name the ids of tokens that have a meaning of their own."""
RUNS_PLAINLY = "it runs one sequence at a time"


@dataclass(frozen=True, slots=True)
class MediaCase:
    """A prompt of P tokens with media of one modality."""

    info: ImageInfo | AudioInfo
    token_ids: torch.Tensor
    places: tuple[tuple[int, int], ...]
    """Where the media are in the prompt: (start, length)."""
    embeddings: torch.Tensor
    logits: torch.Tensor
    """[P, V]: of the model's own code."""
    layer_embeddings: list[torch.Tensor] = field(default_factory=list)
    rope_positions: torch.Tensor | None = None
    bidirectional_layers: frozenset[int] = frozenset()


def check_case(model: TransformersModel, case: MediaCase, what: str) -> None:
    """Compare a step with the case. Raises `UnsupportedModelError` if its logits differ.

    `what`: the media, for the reason.
    """
    try:
        actual = _step_logits(model, case)
    except Exception as error:
        raise UnsupportedModelError(f"a step with {what} fails: {error}") from error
    errors = logits_error(case.logits, actual[: len(case.logits)].to(case.logits.device))
    dtype = next(model.module.parameters()).dtype
    # Rounding in half precision may let a router choose other experts at single tokens.
    worst = float(errors.max() if dtype is torch.float32 else errors.median())
    if worst > logits_tolerance(dtype):
        raise UnsupportedModelError(
            f"a step with {what} gives other logits than the model's own code (off by "
            f"{worst:.2g} standard deviations)"
        )


def adapter_refusal(module: nn.Module, adapters: Iterable[Adapter]) -> str:
    """Return that an adapter, which only changes text here, changes a tower; or nothing."""
    parts = tower_parts(module)
    towers = {name for name, part in module.named_modules() if part in parts}
    for adapter in adapters:
        if any(name.removesuffix(".weight") in towers for name in adapter.layers):
            return f"the adapter {adapter.name} changes its tower (--adapter merges one)"
    return ""


def random_text(module: Any, num_tokens: int) -> torch.Tensor:
    """Return int64[num_tokens]: token ids without those that have a meaning of their own."""
    generator = torch.Generator().manual_seed(0)
    size = len(module.get_input_embeddings().weight)
    token_ids = torch.randint(size, (num_tokens,), generator=generator)
    values = [value for name, value in vars(module.config).items() if name.endswith(TOKENS)]
    marks = [value for value in values if isinstance(value, int)]
    token_ids[torch.isin(token_ids, torch.tensor(marks))] = 7
    return token_ids


def _step_logits(model: TransformersModel, case: MediaCase) -> torch.Tensor:
    """Return the logits of all tokens of a step with the case's prompt, and with a text."""
    info, device = model.info, case.token_ids.device
    prompt, text = case.token_ids.cpu(), torch.arange(TEXT_LENGTH)
    width = -(-max(len(prompt), TEXT_LENGTH) // info.block_size)
    blocks = torch.arange(2 * width, dtype=torch.int32).view(2, width)
    parts = [(prompt, 0, blocks[0]), (text, 0, blocks[1])]
    batch = packed_batch(parts, info.block_size, range(2), all_rows=True)
    rope = case.rope_positions
    if rope is not None:
        rope = torch.cat([rope, text.to(device).expand(3, -1)], dim=1)
    places = torch.cat([torch.arange(start, start + n) for start, n in case.places])
    ends = None
    if case.bidirectional_layers:
        ends = (batch.positions + 1).int()
        for start, length in case.places:
            ends[start : start + length] = start + length
    batch.media = StepMedia(places, case.embeddings, case.layer_embeddings, rope, ends)
    try:
        model.info = replace(info, num_state_slots=2)
        model.allocate_kv_cache(2 * width, info.block_size)
        return model.forward(batch.to(device))
    finally:
        model.info = info
