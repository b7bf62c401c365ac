"""Edits raw logits in place: biases, penalties, suppressed tokens and constraints of each row.

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
    """Edit float32[R, V] (contiguous) in place. Return an error message for each row that fails.

    The work is proportional to the number of edited tokens. Rows without edits are not touched.
    """
    errors: dict[int, str] = {}
    vocab_size = logits.shape[1]
    biases, penalties, suppressions = _Biases(logits), _SparseEdit(), _SparseEdit()
    repetition_rows: list[int] = []
    constrained_rows: list[int] = []
    for row, state in enumerate(states):
        params = state.params
        start = row * vocab_size
        if params.logit_bias:
            unknown_id = biases.add(start, state)
            if unknown_id is not None:
                errors[row] = f"logit_bias names token {unknown_id}; there are {vocab_size} tokens"
                continue
        if state.output_counts and (params.frequency_penalty or params.presence_penalty):
            frequency, presence = params.frequency_penalty, params.presence_penalty
            counts = state.output_counts
            penalties.add(start, counts, (-(n * frequency + presence) for n in counts.values()))
        if params.repetition_penalty != 1.0:
            repetition_rows.append(row)
        if state.suppressed_ids:
            ids = [token for token in state.suppressed_ids if 0 <= token < vocab_size]
            suppressions.add(start, ids, (_NEVER for _ in ids))
        if state.constraint is not None:
            constrained_rows.append(row)
    biases.apply()
    penalties.apply(logits)
    for row in repetition_rows:
        _penalise_repetition(logits[row], states[row])
    suppressions.apply(logits)
    _constrain(logits, states, constrained_rows, errors)
    return errors


class _Biases:
    """The `logit_bias` of all rows, added together. Each request's becomes tensors only once."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits
        self._tensors_by_params: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._indices: list[torch.Tensor] = []
        self._amounts: list[torch.Tensor] = []

    def add(self, start: int, state: SamplingState) -> int | None:
        """Add the row that starts at `start`. Return a token id that does not exist, if any."""
        bias = state.params.logit_bias
        if state.bias_tensors is None:
            tensors = self._tensors_by_params.get(id(state.params))
            if tensors is None:
                vocab_size = self._logits.shape[1]
                unknown_id = next((token for token in bias if not 0 <= token < vocab_size), None)
                if unknown_id is not None:
                    return unknown_id
                device = self._logits.device
                ids = to_device(list(bias), device, torch.int64)
                tensors = ids, to_device(list(bias.values()), device, torch.float32)
            state.bias_tensors = tensors
        self._tensors_by_params[id(state.params)] = state.bias_tensors
        ids, amounts = state.bias_tensors
        self._indices.append(ids + start)
        self._amounts.append(amounts)
        return None

    def apply(self) -> None:
        if self._indices:
            indices, amounts = torch.cat(self._indices), torch.cat(self._amounts)
            self._logits.view(-1).index_add_(0, indices, amounts.to(self._logits.dtype))


class _SparseEdit:
    """Amounts to add to single logits, collected from all rows and added together."""

    __slots__ = ("amounts", "indices")

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.amounts: list[float] = []

    def add(self, start: int, ids: Iterable[int], amounts: Iterable[float]) -> None:
        """Add `amounts` to the distinct tokens `ids` of the row that starts at `start`."""
        self.indices.extend(start + token for token in ids)
        self.amounts.extend(amounts)

    def apply(self, logits: torch.Tensor) -> None:
        if self.indices:
            indices = to_device(self.indices, logits.device)
            amounts = to_device(self.amounts, logits.device, logits.dtype)
            logits.view(-1).index_add_(0, indices, amounts)


def _penalise_repetition(row: torch.Tensor, state: SamplingState) -> None:
    """Apply repetition_penalty to float32[V].

    A token of both prompt and output is written twice, with the same value.
    """
    if state.prompt_ids_tensor is None:
        prompt_ids = sorted({token for token in state.prompt_token_ids if 0 <= token < len(row)})
        state.prompt_ids_tensor = to_device(prompt_ids, row.device, torch.int64)
    output_ids = to_device(list(state.output_counts), row.device, torch.int64)
    ids = torch.cat([state.prompt_ids_tensor, output_ids])
    penalty = state.params.repetition_penalty
    values = row[ids]
    row[ids] = torch.where(values > 0, values / penalty, values * penalty)


def _constrain(
    logits: torch.Tensor,
    states: Sequence[SamplingState],
    rows: list[int],
    errors: dict[int, str],
) -> None:
    """Set the tokens that the constraints of `rows` forbid to -inf."""
    if not rows:
        return
    num_words = -(-logits.shape[1] // _WORD_BITS)
    masks = torch.zeros(len(rows), num_words, dtype=torch.int32)
    masked_rows: list[int] = []
    for row in rows:
        try:
            if _fill(states[row].constraint, masks[len(masked_rows)]):
                masked_rows.append(row)
        except GrammarError as error:
            errors[row] = f"{GRAMMAR_FAILED}{error}"
        except Exception as error:  # an error of one constraint fails its own row only
            errors[row] = f"the constraint failed: {error}"
    if not masked_rows:
        return
    words = to_device(masks[: len(masked_rows)].numpy(), logits.device)
    bits = torch.arange(_WORD_BITS, dtype=torch.int32, device=logits.device)
    allowed = ((words.unsqueeze(-1) >> bits) & 1).flatten(1)[:, : logits.shape[1]]
    if len(masked_rows) == len(logits):
        logits.masked_fill_(allowed == 0, _NEVER)
        return
    for row, allowed_row in zip(masked_rows, allowed, strict=True):
        logits[row].masked_fill_(allowed_row == 0, _NEVER)


def _fill(constraint: TokenConstraint | None, row: torch.Tensor) -> bool:
    return constraint is not None and constraint.fill_bitmask(row)
