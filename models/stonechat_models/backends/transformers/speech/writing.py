"""Lets transformers' own `generate` write the tokens of windows of speech."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput

from stonechat_models.backends.base import Window
from stonechat_models.transcript import SpeechParams

NUM_START_TOKENS = 3
"""The start, the language and the task, which a model of English alone does not have."""


@dataclass(frozen=True, slots=True)
class Written:
    """The tokens of a window, without the end token, and those before them."""

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    temperature: float
    avg_logprob: float
    """The end token counts too."""
    is_cut: bool
    """Whether the window's own limit ended it."""


def write(
    module: Any,
    windows: Sequence[Window],
    encoded: torch.Tensor,
    languages: Sequence[str],
    temperature: float,
) -> list[Written]:
    """Write windows of the same prompt, task and limit.

    `encoded`: the encoder's states, [N, positions, size]. `languages` are empty for a model of
    English alone. At a temperature above 0, the windows are drawn from the first one's seed.
    """
    first, end_id = windows[0], int(module.generation_config.eos_token_id)
    params, prompt = first.request.params, first.request.prompt_token_ids[:-1]
    options: dict[str, Any] = {}
    if any(languages):
        options = {"language": list(languages), "task": speech_of(first).task}
    if prompt:
        options["prompt_ids"] = torch.tensor(prompt, device=encoded.device)
    if temperature:
        options |= {"top_p": params.top_p, "top_k": 0}
    room = module.config.max_target_positions - len(prompt)
    room -= NUM_START_TOKENS if any(languages) else 1
    if first.max_tokens is not None:
        room = min(room, first.max_tokens)
    sums = _LogprobSums(end_id)
    with _seeded(None if params.seed is None else params.seed + first.start, encoded.device):
        outputs = module.generate(
            encoder_outputs=BaseModelOutput(encoded),
            attention_mask=encoded.new_ones(encoded.shape[:2], dtype=torch.long),
            return_timestamps=True,
            force_unique_generate_call=True,
            temperature=temperature,
            num_beams=1,
            max_length=room,  # transformers counts it behind the prompt
            logits_processor=LogitsProcessorList([sums]),
            **options,
        )
    sums.add(outputs[:, -1])
    written, start = [], sums.num_prompt_tokens
    for row, logprob in zip(outputs.tolist(), sums.sums.tolist(), strict=True):
        is_ended = end_id in row[start:]
        end = row.index(end_id, start) if is_ended else len(row)
        average = logprob / max(1, end - start + is_ended)
        is_cut = not is_ended and room == first.max_tokens
        written.append(Written(row[:start], row[start:end], temperature, average, is_cut))
    return written


def speech_of(window: Window) -> SpeechParams:
    """What is asked of the clip of a window."""
    assert window.request.speech is not None, "the model transcribes speech"
    return window.request.speech


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw from a seed, if there is one, and leave the generators as they were."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed % 2**63)
        yield


class _LogprobSums(LogitsProcessor):  # type: ignore[misc]
    """Sums the log-probabilities of the tokens that `generate` chooses, up to the end token.

    The logits are kept for one step only: those of a window would take 90 MB.
    """

    def __init__(self, end_id: int) -> None:
        self._end_id = end_id
        self._logprobs: torch.Tensor | None = None
        self._has_ended = torch.zeros(0, dtype=torch.bool)
        self.num_prompt_tokens = 0
        self.sums = torch.zeros(0)
        """float32[N]"""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._logprobs is None:
            self.num_prompt_tokens = input_ids.shape[1]
            self.sums = torch.zeros(len(scores), device=scores.device)
            self._has_ended = torch.zeros_like(self.sums, dtype=torch.bool)
        else:
            self.add(input_ids[:, -1])
        self._logprobs = scores.float().log_softmax(dim=-1)
        return scores

    def add(self, token_ids: torch.Tensor) -> None:
        """Add those of the tokens that were chosen last, int64[N]."""
        assert self._logprobs is not None
        chosen = self._logprobs.gather(1, token_ids[:, None])[:, 0]
        self.sums += chosen.masked_fill(self._has_ended, 0.0)
        self._has_ended |= token_ids == self._end_id
