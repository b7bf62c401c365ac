"""Edits of raw logits, row by row and sparse: biases, penalties, suppressed tokens, constraints.

The order is fixed: logit_bias; frequency and presence penalties over the generated tokens
(logit - count * frequency - presence, as OpenAI documents them); repetition_penalty over prompt
and output (arXiv 1909.05858: divide where positive, multiply where negative); suppressed end
tokens; the constraint's bitmask.
"""

from collections.abc import Iterable, Sequence

import torch

from stonechat_models.errors import GrammarError
from stonechat_models.hardware.transfers import to_device
from stonechat_models.sampling.state import SamplingState, TokenConstraint
from stonechat_models.types import GRAMMAR_FAILED

_NEVER = float("-inf")
_WORD_BITS = 32


def edit_logits(logits: torch.Tensor, states: Sequence[SamplingState]) -> dict[int, str]:
    """Edit float32[R, V] (contiguous) in place; return an error message for each row that fails.

    Work is proportional to the tokens edited. Rows that ask for nothing are not touched.
    """
    errors: dict[int, str] = {}
    vocab_size = logits.shape[1]
    biases, penalties, suppressed = _Biases(logits), _SparseEdit(), _SparseEdit()
    repeated: list[int] = []
    constrained: list[int] = []
    for row, state in enumerate(states):
        params = state.params
        start = row * vocab_size
        if params.logit_bias:
            outside = biases.add(start, state)
            if outside is not None:
                errors[row] = f"logit_bias names token {outside}; there are {vocab_size} tokens"
                continue
        if state.output_counts and (params.frequency_penalty or params.presence_penalty):
            frequency, presence = params.frequency_penalty, params.presence_penalty
            counts = state.output_counts
            penalties.add(start, counts, (-(n * frequency + presence) for n in counts.values()))
        if params.repetition_penalty != 1.0:
            repeated.append(row)
        if state.suppressed_ids:
            ids = [token for token in state.suppressed_ids if 0 <= token < vocab_size]
            suppressed.add(start, ids, (_NEVER for _ in ids))
        if state.constraint is not None:
            constrained.append(row)
    biases.apply()
    penalties.apply(logits)
    for row in repeated:
        _penalise_repetition(logits[row], states[row])
    suppressed.apply(logits)
    _constrain(logits, states, constrained, errors)
    return errors


class _Biases:
    """The rows' `logit_bias`, made tensors once a request, however large, and added at once."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits
        self._of_params: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._places: list[torch.Tensor] = []
        self._amounts: list[torch.Tensor] = []

    def add(self, start: int, state: SamplingState) -> int | None:
        """Gather those of the row that starts at `start`; return a token that is none, if any."""
        bias = state.params.logit_bias
        if state.bias_tensors is None:
            known = self._of_params.get(id(state.params))
            if known is None:
                vocab_size = self._logits.shape[1]
                outside = next((token for token in bias if not 0 <= token < vocab_size), None)
                if outside is not None:
                    return outside
                device = self._logits.device
                ids = to_device(list(bias), device, torch.int64)
                known = ids, to_device(list(bias.values()), device, torch.float32)
            state.bias_tensors = known
        self._of_params[id(state.params)] = state.bias_tensors
        ids, amounts = state.bias_tensors
        self._places.append(ids + start)
        self._amounts.append(amounts)
        return None

    def apply(self) -> None:
        if self._places:
            places, amounts = torch.cat(self._places), torch.cat(self._amounts)
            self._logits.view(-1).index_add_(0, places, amounts.to(self._logits.dtype))


class _SparseEdit:
    """Amounts to add to single logits, gathered over all rows and added at once."""

    __slots__ = ("amounts", "places")

    def __init__(self) -> None:
        self.places: list[int] = []
        self.amounts: list[float] = []

    def add(self, start: int, ids: Iterable[int], amounts: Iterable[float]) -> None:
        """Add `amounts` to the distinct tokens `ids` of the row that starts at `start`."""
        self.places.extend(start + token for token in ids)
        self.amounts.extend(amounts)

    def apply(self, logits: torch.Tensor) -> None:
        if self.places:
            places = to_device(self.places, logits.device)
            amounts = to_device(self.amounts, logits.device, logits.dtype)
            logits.view(-1).index_add_(0, places, amounts)


def _penalise_repetition(row: torch.Tensor, state: SamplingState) -> None:
    """Apply repetition_penalty to float32[V]. A token met twice is written twice, alike."""
    if state.prompt_ids_tensor is None:
        known = sorted({token for token in state.prompt_token_ids if 0 <= token < len(row)})
        state.prompt_ids_tensor = to_device(known, row.device, torch.int64)
    generated = to_device(list(state.output_counts), row.device, torch.int64)
    ids = torch.cat([state.prompt_ids_tensor, generated])
    penalty = state.params.repetition_penalty
    values = row[ids]
    row[ids] = torch.where(values > 0, values / penalty, values * penalty)


def _constrain(
    logits: torch.Tensor,
    states: Sequence[SamplingState],
    rows: list[int],
    errors: dict[int, str],
) -> None:
    """Set to -inf what the rows' constraints forbid."""
    if not rows:
        return
    num_words = -(-logits.shape[1] // _WORD_BITS)
    masks = torch.zeros(len(rows), num_words, dtype=torch.int32)
    active: list[int] = []
    for row in rows:
        try:
            if _fill(states[row].constraint, masks[len(active)]):
                active.append(row)
        except GrammarError as error:
            errors[row] = f"{GRAMMAR_FAILED}{error}"
        except Exception as error:  # whatever a grammar raises concerns its own row only
            errors[row] = f"the constraint failed: {error}"
    if not active:
        return
    words = to_device(masks[: len(active)].numpy(), logits.device)
    bits = torch.arange(_WORD_BITS, dtype=torch.int32, device=logits.device)
    allowed = ((words.unsqueeze(-1) >> bits) & 1).flatten(1)[:, : logits.shape[1]]
    if len(active) == len(logits):
        logits.masked_fill_(allowed == 0, _NEVER)
        return
    for row, allowed_row in zip(active, allowed, strict=True):
        logits[row].masked_fill_(allowed_row == 0, _NEVER)


def _fill(constraint: TokenConstraint | None, row: torch.Tensor) -> bool:
    return constraint is not None and constraint.fill_bitmask(row)
