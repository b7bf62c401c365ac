"""Finds when each token of a transcript is said: the decoder's attention to the sound, aligned by
dynamic time warping.

Some heads of the cross attention follow the sound; the model's files name them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from stonechat_models.backends.transformers.speech.segments import FRAMES_PER_TIME

Path = npt.NDArray[np.int64]


def token_times(
    module: Any,
    encoded: torch.Tensor,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    num_frames: int,
) -> list[int]:
    """Return when each token is over, in frames from the start of its window.

    `encoded`: the encoder's states of the window, [1, positions, size], of which `num_frames` are
    sound. `module` has the alignment heads in its generation config.
    """
    heads = module.generation_config.alignment_heads
    ids = torch.tensor([[*prompt_ids, *token_ids]], device=encoded.device)
    seen: dict[int, torch.Tensor] = {}
    with _Listening(module, {layer for layer, _ in heads}, seen):
        module(encoder_outputs=(encoded,), decoder_input_ids=ids, use_cache=False)
    rows = torch.stack([seen[layer][head] for layer, head in heads])  # [heads, tokens, positions]
    rows = rows[:, len(prompt_ids) :, : max(1, num_frames // FRAMES_PER_TIME)]
    spread = rows.std(dim=1, keepdim=True, unbiased=False)
    rows = (rows - rows.mean(dim=1, keepdim=True)) / spread.clamp(min=torch.finfo(rows.dtype).tiny)
    matrix = _smoothed(rows, module.config.median_filter_width).mean(dim=0)
    tokens, positions = _warp(-matrix.double().cpu().numpy())
    begins = np.diff(tokens, prepend=-1).astype(bool)
    return [int(position) * FRAMES_PER_TIME for position in positions[begins]]


class _Listening:
    """While it lasts, notes the weights of the cross attention of layers: float32[heads, tokens,
    positions] of the only sequence."""

    def __init__(self, module: Any, layers: set[int], seen: dict[int, torch.Tensor]) -> None:
        self._seen = seen
        self._hooks = [
            module.model.decoder.layers[layer].encoder_attn.register_forward_pre_hook(
                self._hook_of(layer), with_kwargs=True
            )
            for layer in layers
        ]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook_of(self, layer: int) -> Any:
        def hook(attention: nn.Module, args: Any, kwargs: Any) -> None:
            self._seen[layer] = _weights(attention, args[0], kwargs["key_value_states"])

        return hook


def _weights(attention: Any, states: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
    queries, keys = attention.q_proj(states) * attention.scaling, attention.k_proj(encoded)
    split = (-1, attention.num_heads, attention.head_dim)
    queries, keys = queries[0].view(split), keys[0].view(split)
    scores = torch.einsum("thd,phd->htp", queries.float(), keys.float())
    return scores.softmax(dim=-1)


def _smoothed(rows: torch.Tensor, width: int) -> torch.Tensor:
    """The median of each position and those around it, `width` together."""
    side = width // 2
    if rows.shape[-1] <= side:
        return rows
    padded = nn.functional.pad(rows, (side, side), mode="reflect")
    return padded.unfold(-1, width, 1).median(dim=-1).values


def _warp(costs: npt.NDArray[np.float64]) -> tuple[Path, Path]:
    """Return the cheapest way through a matrix, as its rows and columns from the first to the last
    number. It goes one row down, one column on, or both. The numbers of a diagonal are computed at
    once."""
    num_rows, num_columns = costs.shape
    total = np.full((num_rows + 1, num_columns + 1), np.inf, np.float32)
    steps = np.full(total.shape, -1, np.int8)
    total[0, 0] = 0
    for diagonal in range(2, num_rows + num_columns + 1):
        first = max(1, diagonal - num_columns)
        i = np.arange(first, min(num_rows, diagonal - 1) + 1)
        j = diagonal - i
        both, down, on = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        is_both = (both < down) & (both < on)
        is_down = ~is_both & (down < both) & (down < on)
        steps[i, j] = np.where(is_both, 0, np.where(is_down, 1, 2))
        total[i, j] = costs[i - 1, j - 1] + np.where(is_both, both, np.where(is_down, down, on))
    steps[0, :], steps[:, 0] = 2, 1
    way = []
    i, j = num_rows, num_columns
    while i > 0 or j > 0:
        way.append((i - 1, j - 1))
        step = steps[i, j]
        i, j = i - (step != 2), j - (step != 1)
    rows, columns = np.array(way[::-1]).T
    return rows, columns
