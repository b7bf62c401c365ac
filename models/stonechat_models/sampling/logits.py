"""Edits raw logits in place: biases, penalties, suppressed tokens and constraints of each row.

The order is fixed (`EDITS`): logit_bias; frequency and presence penalties over the generated tokens
(logit - count * frequency - presence, as OpenAI documents them); repetition_penalty over prompt
and output (arXiv 1909.05858: divide where positive, multiply where negative); suppressed end
tokens; the constraint's bitmask.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from stonechat_models.hardware.transfers import to_device
from stonechat_models.sampling.rows import Errors, fill_masks
from stonechat_models.sampling.state import SamplingState

_NEVER = float("-inf")
_WORD_BITS = 32


class LogitsEdit(Protocol):
    """One of the edits. It does nothing to a row that does not need it."""

    def rows(self, states: Sequence[SamplingState]) -> list[int]:
        """Return the rows that need this edit."""

    def apply(
        self, logits: torch.Tensor, states: Sequence[SamplingState], rows: list[int]
    ) -> Errors:
        """Edit `rows` of float32[R, V] (contiguous) in place. Return the rows that fail."""


def edit_logits(logits: torch.Tensor, states: Sequence[SamplingState]) -> Errors:
    """Edit float32[R, V] (contiguous) in place. Return an error message for each row that fails.

    The work is proportional to the number of edited tokens. A row that fails gets no later edits.
    """
    errors: Errors = {}
    for edit in EDITS:
        rows = edit.rows(states)
        if errors:
            rows = [row for row in rows if row not in errors]
        if rows:
            errors |= edit.apply(logits, states, rows)
    return errors


class Bias:
    """logit_bias. Each request's becomes tensors only once."""

    def rows(self, states: Sequence[SamplingState]) -> list[int]:
        return [row for row, state in enumerate(states) if state.params.logit_bias]

    def apply(
        self, logits: torch.Tensor, states: Sequence[SamplingState], rows: list[int]
    ) -> Errors:
        errors: Errors = {}
        indices: list[torch.Tensor] = []
        amounts: list[torch.Tensor] = []
        for row in rows:
            try:
                ids, bias = bias_tensors(states[row], logits)
            except ValueError as error:
                errors[row] = str(error)
                continue
            indices.append(ids + row * logits.shape[1])
            amounts.append(bias)
        if indices:
            logits.view(-1).index_add_(0, torch.cat(indices), torch.cat(amounts))
        return errors


class Penalties:
    """frequency_penalty and presence_penalty, on the tokens generated so far."""

    def rows(self, states: Sequence[SamplingState]) -> list[int]:
        return [
            row
            for row, state in enumerate(states)
            if (state.params.frequency_penalty or state.params.presence_penalty)
            and state.output_counts
        ]

    def apply(
        self, logits: torch.Tensor, states: Sequence[SamplingState], rows: list[int]
    ) -> Errors:
        indices: list[int] = []
        amounts: list[float] = []
        for row in rows:
            params, counts = states[row].params, states[row].output_counts
            frequency, presence = params.frequency_penalty, params.presence_penalty
            start = row * logits.shape[1]
            indices += [start + token for token in counts]
            amounts += [-(n * frequency + presence) for n in counts.values()]
        _add(logits, indices, amounts)
        return {}


class Repetition:
    """repetition_penalty, on the tokens of prompt and output."""

    def rows(self, states: Sequence[SamplingState]) -> list[int]:
        return [row for row, state in enumerate(states) if state.params.repetition_penalty != 1.0]

    def apply(
        self, logits: torch.Tensor, states: Sequence[SamplingState], rows: list[int]
    ) -> Errors:
        for row in rows:
            self._penalise(logits[row], states[row])
        return {}

    def _penalise(self, row: torch.Tensor, state: SamplingState) -> None:
        """Penalise float32[V]. A token of prompt and output is written twice, equally."""
        prompt_ids = prompt_tensor(state, len(row), row.device)
        output_ids = to_device(list(state.output_counts), row.device, torch.int64)
        ids = torch.cat([prompt_ids, output_ids])
        penalty = state.params.repetition_penalty
        values = row[ids]
        row[ids] = torch.where(values > 0, values / penalty, values * penalty)


class Suppression:
    """End tokens that may not be chosen yet (min_tokens)."""

    def rows(self, states: Sequence[SamplingState]) -> list[int]:
        return [row for row, state in enumerate(states) if state.suppressed_ids]

    def apply(
        self, logits: torch.Tensor, states: Sequence[SamplingState], rows: list[int]
    ) -> Errors:
        vocab_size = logits.shape[1]
        indices = [
            row * vocab_size + token
            for row in rows
            for token in states[row].suppressed_ids
            if 0 <= token < vocab_size
        ]
        _add(logits, indices, [_NEVER] * len(indices))
        return {}


class Constraint:
    """The tokens that grammars and reasoning budgets forbid."""

    def rows(self, states: Sequence[SamplingState]) -> list[int]:
        return [row for row, state in enumerate(states) if state.constraint is not None]

    def apply(
        self, logits: torch.Tensor, states: Sequence[SamplingState], rows: list[int]
    ) -> Errors:
        masks = np.zeros((len(rows), -(-logits.shape[1] // _WORD_BITS)), dtype=np.int32)
        masked_rows, errors = fill_masks(masks, states, rows)
        if masked_rows:
            _forbid(logits, masks[: len(masked_rows)], masked_rows)
        return errors


EDITS: tuple[LogitsEdit, ...] = (Bias(), Penalties(), Repetition(), Suppression(), Constraint())
"""In the order in which they apply. `SamplingState.needs_edits` knows who needs one."""


def bias_tensors(state: SamplingState, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens, int64, and amounts of `logit_bias`: with device and dtype of `logits`.

    They are made once per request. Raises `ValueError` for a token that is not in the vocabulary.
    """
    tensors, bias, vocab_size = state.tensors, state.params.logit_bias, logits.shape[1]
    if tensors.bias is None:
        unknown_id = next((token for token in bias if not 0 <= token < vocab_size), None)
        if unknown_id is not None:
            raise ValueError(f"logit_bias names token {unknown_id}; there are {vocab_size} tokens")
        ids = to_device(list(bias), logits.device, torch.int64)
        tensors.bias = ids, to_device(list(bias.values()), logits.device, logits.dtype)
    return tensors.bias


def prompt_tensor(state: SamplingState, vocab_size: int, device: torch.device) -> torch.Tensor:
    """Return the prompt's distinct tokens, int64. They are made once per request."""
    tensors = state.tensors
    if tensors.prompt_ids is None:
        tensors.prompt_set = {t for t in state.prompt_token_ids if 0 <= t < vocab_size}
        tensors.prompt_ids = to_device(sorted(tensors.prompt_set), device, torch.int64)
    return tensors.prompt_ids


def _add(logits: torch.Tensor, indices: list[int], amounts: list[float]) -> None:
    """Add `amounts` to single logits: those at the distinct `indices` of the flattened rows."""
    if indices:
        on_device = to_device(amounts, logits.device, logits.dtype)
        logits.view(-1).index_add_(0, to_device(indices, logits.device), on_device)


def _forbid(logits: torch.Tensor, masks: np.ndarray, rows: list[int]) -> None:
    """Set the tokens of `rows` whose bit in `masks`, int32[len(rows), words], is 0 to -inf."""
    words = to_device(masks, logits.device)
    bits = torch.arange(_WORD_BITS, dtype=torch.int32, device=logits.device)
    allowed = ((words.unsqueeze(-1) >> bits) & 1).flatten(1)[:, : logits.shape[1]]
    if len(rows) == len(logits):
        logits.masked_fill_(allowed == 0, _NEVER)
        return
    for row, allowed_row in zip(rows, allowed, strict=True):
        logits[row].masked_fill_(allowed_row == 0, _NEVER)
