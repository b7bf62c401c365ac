"""Edits logits on a device as `sampling.edits` does: one launch for few tokens, one for masks."""

import struct
from collections.abc import Sequence

import numpy as np
import torch

from stonechat_models.hardware.transfers import to_device
from stonechat_models.sampling.rows import Errors, fill_masks
from stonechat_models.sampling.state import SamplingState
from stonechat_models.sampling.triton import edit_kernels as kernels

_TILE = 512
_WORD_BITS = 32


def edit_logits(logits: torch.Tensor, states: Sequence[SamplingState]) -> Errors:
    """Edit float32[R, V] (contiguous) in place. Return an error message for each row that fails.

    A row that fails may have some of the edits. Nothing waits for the device.
    """
    errors: Errors = {}
    records: list[list[int]] = []
    entries: list[int] = []
    for row, state in enumerate(states):
        if _edits_tokens(state):
            try:
                records.append(_record(row, state, logits, entries))
            except ValueError as error:
                errors[row] = str(error)
    if records:
        for record in records:  # entries follow the records
            record[kernels.FIRST.value] += len(records) * kernels.WORDS.value
        words = np.array([*np.ravel(records).tolist(), *entries], np.int64)
        kernels.edit_kernel[(len(records),)](
            logits, to_device(words, logits.device), logits.shape[1], _TILE
        )
    rows = [row for row, s in enumerate(states) if s.constraint is not None and row not in errors]
    return errors | _forbid(logits, states, rows) if rows else errors


def _edits_tokens(state: SamplingState) -> bool:
    params = state.params
    return bool(
        params.logit_bias
        or state.suppressed_ids
        or params.repetition_penalty != 1.0
        or ((params.frequency_penalty or params.presence_penalty) and state.output_counts)
    )


def _record(row: int, state: SamplingState, logits: torch.Tensor, entries: list[int]) -> list[int]:
    """Return the record of a row and add to `entries`. Its tensors live as long as its request."""
    params, vocab_size = state.params, logits.shape[1]
    record = [0] * kernels.WORDS.value
    record[kernels.ROW.value] = row
    record[kernels.FIRST.value] = len(entries)
    if params.logit_bias:
        ids, amounts = _bias_tensors(state, logits)
        record[kernels.BIAS_IDS.value] = ids.data_ptr()
        record[kernels.BIAS_AMOUNTS.value] = amounts.data_ptr()
        record[kernels.NUM_BIAS.value] = len(ids)
    counts = state.output_counts
    output: list[int] = list(counts)
    if params.repetition_penalty != 1.0:
        prompt_ids = _prompt_tensor(state, vocab_size, logits.device)
        record[kernels.PROMPT_IDS.value] = prompt_ids.data_ptr()
        record[kernels.NUM_PROMPT.value] = len(prompt_ids)
        in_prompt = state.tensors.prompt_set
        fresh = [token for token in counts if token not in in_prompt]
        output = fresh + [token for token in counts if token in in_prompt]
        record[kernels.NUM_FRESH.value] = len(fresh)
        record[kernels.PENALTY.value] = _bits("d", params.repetition_penalty)
    frequency, presence = params.frequency_penalty, params.presence_penalty
    if frequency or presence or params.repetition_penalty != 1.0:
        amounts_of = {n: _bits("f", -(n * frequency + presence)) for n in set(counts.values())}
        entries += [token << 32 | amounts_of[counts[token]] for token in output]
        record[kernels.NUM_OUTPUT.value] = len(output)
    suppressed = [token for token in state.suppressed_ids if 0 <= token < vocab_size]
    entries += [token << 32 for token in suppressed]
    record[kernels.NUM_SUPPRESSED.value] = len(suppressed)
    return record


def _bias_tensors(state: SamplingState, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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


def _prompt_tensor(state: SamplingState, vocab_size: int, device: torch.device) -> torch.Tensor:
    """Return the prompt's distinct tokens, int64. They are made once per request."""
    tensors = state.tensors
    if tensors.prompt_ids is None:
        tensors.prompt_set = {t for t in state.prompt_token_ids if 0 <= t < vocab_size}
        tensors.prompt_ids = to_device(sorted(tensors.prompt_set), device, torch.int64)
    return tensors.prompt_ids


def _bits(kind: str, value: float) -> int:
    """The bits of a float32 ("f", unsigned) or a float64 ("d")."""
    if kind == "f":
        return int(np.float32(value).view(np.uint32))
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _forbid(logits: torch.Tensor, states: Sequence[SamplingState], rows: list[int]) -> Errors:
    """Apply the masks of the constraints of `rows`. Return the errors of constraints."""
    num_words = -(-logits.shape[1] // _WORD_BITS)
    is_cuda = logits.device.type == "cuda"
    masks = torch.zeros(len(rows), 1 + num_words, dtype=torch.int32, pin_memory=is_cuda)
    masked_rows, errors = fill_masks(masks.numpy()[:, 1:], states, rows)
    if masked_rows:
        masks = masks[: len(masked_rows)]
        masks[:, 0] = torch.tensor(masked_rows, dtype=torch.int32)
        grid = (-(-num_words // kernels.MASK_WORDS.value), len(masked_rows))
        on_device = masks.to(logits.device, non_blocking=True)
        kernels.mask_kernel[grid](logits, on_device, logits.shape[1], num_words)
    return errors
