"""Edits raw logits on the host: biases, penalties, suppressed tokens and constraints of each row.

The order is fixed: logit_bias; frequency and presence penalties over the generated tokens
(logit - count * frequency - presence, as OpenAI documents them); repetition_penalty over prompt
and output (arXiv 1909.05858: divide where positive, multiply where negative); suppressed end
tokens; the constraint's bitmask.
"""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from stonechat_models.sampling.rows import Errors, fill_masks
from stonechat_models.sampling.state import SamplingState

Row = npt.NDArray[np.float32]

_NEVER = np.float32(-np.inf)


def edit_rows(logits: Row, states: Sequence[SamplingState]) -> Errors:
    """Edit float32[R, V] in place. Return an error message for each row that fails.

    The work is proportional to the number of edited tokens. A row that fails gets no later edits.
    """
    errors: Errors = {}
    constrained: list[int] = []
    for row, state in enumerate(states):
        if not state.needs_edits:
            continue
        problem = _edit(logits[row], state)
        if problem is not None:
            errors[row] = problem
        elif state.constraint is not None:
            constrained.append(row)
    if constrained:
        masks = np.zeros((len(constrained), -(-logits.shape[1] // 32)), dtype=np.int32)
        masked, failed = fill_masks(masks, states, constrained)
        errors |= failed
        for row, mask in zip(masked, masks, strict=False):
            _forbid(logits[row], mask)
    return errors


def _edit(row: Row, state: SamplingState) -> str | None:
    """Apply all edits but the constraint to float32[V]. Return why the row fails, if it does."""
    params, counts = state.params, state.output_counts
    if params.logit_bias:
        unknown = _add_bias(row, state)
        if unknown is not None:
            return f"logit_bias names token {unknown}; there are {len(row)} tokens"
    frequency, presence = params.frequency_penalty, params.presence_penalty
    if (frequency or presence) and counts:
        amounts = [-(n * frequency + presence) for n in counts.values()]
        row[_ids(counts)] += np.array(amounts, dtype=np.float32)
    if params.repetition_penalty != 1.0:
        _penalise_repetition(row, state)
    if state.suppressed_ids:
        row[[i for i in state.suppressed_ids if 0 <= i < len(row)]] += _NEVER
    return None


def _ids(tokens: Collection[int]) -> npt.NDArray[np.int64]:
    return np.fromiter(tokens, dtype=np.int64, count=len(tokens))


def _add_bias(row: Row, state: SamplingState) -> int | None:
    """Add `logit_bias`. Return a token of it that is not in the vocabulary, if there is one."""
    shared, bias = state.tensors, state.params.logit_bias
    if shared.host_bias is None:
        unknown = next((token for token in bias if not 0 <= token < len(row)), None)
        if unknown is not None:
            return unknown
        shared.host_bias = _ids(bias), np.array([*bias.values()], dtype=np.float32)
    ids, amounts = shared.host_bias
    row[ids] += amounts
    return None


def _penalise_repetition(row: Row, state: SamplingState) -> None:
    """Penalise the tokens of prompt and output. One that is in both is written twice, equally."""
    shared, penalty = state.tensors, np.float32(state.params.repetition_penalty)
    if shared.host_prompt_ids is None:
        shared.host_prompt_ids = _ids([t for t in {*state.prompt_token_ids} if 0 <= t < len(row)])
    ids = np.concatenate([shared.host_prompt_ids, _ids(state.output_counts)])
    values = row[ids]
    row[ids] = np.where(values > 0, values / penalty, values * penalty)


def _forbid(row: Row, mask: npt.NDArray[np.int32]) -> None:
    """Set the tokens of float32[V] whose bit in int32[words] is 0 to -inf."""
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little", count=len(row))
    np.copyto(row, _NEVER, where=bits == 0)
